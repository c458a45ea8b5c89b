"""Hash routing: by table and by function, and every table that is none."""

import pytest
import torch

import moegate
from moegate.selection.hashing import hashed_experts

RULE = moegate.recipes.hash_routing(top_k=2)
TABLE = torch.tensor([[0, 1], [2, 3], [3, 0]])


def test_the_table_decides() -> None:
    ids = torch.tensor([[2, 0], [1, 2]], dtype=torch.int32)
    routing = moegate.route(torch.randn(2, 2, 4), RULE, token_ids=ids, hash_table=TABLE.to(torch.int32))
    assert routing.expert_index.tolist() == [[3, 0], [0, 1], [2, 3], [3, 0]]
    assert routing.weights.tolist() == [[0.5, 0.5]] * 4


def test_logits_do_not_matter() -> None:
    ids = torch.arange(50)
    first, second = (moegate.route(torch.randn(50, 16), RULE, token_ids=ids).expert_index for _ in range(2))
    assert first.equal(second)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 7, 64, 513])
def test_hashed_experts_are_distinct_and_even(num_experts: int) -> None:
    top_k = min(4, num_experts)
    index = hashed_experts(torch.arange(20_000), num_experts, top_k, seed=3)
    assert int(index.min()) == 0 and int(index.max()) == num_experts - 1
    ordered = index.sort(dim=-1).values
    assert not (ordered[:, 1:] == ordered[:, :-1]).any()
    load = torch.bincount(index.flatten(), minlength=num_experts).double()
    mean = 20_000 * top_k / num_experts
    # Six standard deviations of a binomial count.
    assert float((load - mean).abs().max()) <= 6 * mean**0.5


def test_seeds_hash_independently() -> None:
    ids = torch.arange(10_000)
    zero, one = (hashed_experts(ids, 16, 1, seed) for seed in (0, 1))
    assert 0.04 < float((zero == one).double().mean()) < 0.09  # 1/16 by chance


def test_extreme_ids_are_hashed_too() -> None:
    ids = torch.tensor([-(2**63), 2**63 - 1, -1, 0])
    assert hashed_experts(ids, 8, 8, seed=0).sort(dim=-1).values.tolist() == [list(range(8))] * 4


@pytest.mark.parametrize("table", [None, TABLE])
def test_ids_of_padding_are_not_looked_at(table: torch.Tensor | None) -> None:
    mask, ids = torch.tensor([True, False, True]), torch.tensor([1, -100, 2])
    routing = moegate.route(torch.randn(3, 4), RULE, token_ids=ids, hash_table=table, token_mask=mask)
    assert routing.expert_index[1].tolist() == [-1, -1]
    assert bool((routing.expert_index[[0, 2]] >= 0).all())


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ([[0, 1]], TypeError, "hash_table must be an integer tensor .* got list"),
        (TABLE.float(), TypeError, "got torch.float32"),
        (TABLE[:, :1], ValueError, r"shape \[vocabulary, top_k=2\], got \(3, 1\)"),
        (TABLE[0], ValueError, r"got \(2,\)"),
        (TABLE + 2, ValueError, r"experts outside 0..3"),
        (TABLE - 1, ValueError, r"experts outside 0..3"),
        (torch.tensor([[0, 1], [2, 2], [0, 1]]), ValueError, "names an expert twice"),
        (TABLE[:2], ValueError, r"token_ids run from 0 to 2, but hash_table has 2 rows: ids must lie in 0..1"),
        (TABLE.to("meta"), ValueError, "hash_table is on meta"),
    ],
)
def test_tables_that_are_none(table: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        moegate.route(torch.randn(3, 4), RULE, token_ids=torch.arange(3), hash_table=table)  # type: ignore[arg-type]


def test_without_ids() -> None:
    with pytest.raises(ValueError, match="pass token_ids, one integer a token"):
        moegate.route(torch.randn(3, 4), RULE)


@pytest.mark.parametrize(
    ("ids", "error"),
    [(torch.zeros(3), TypeError), (torch.zeros(4, dtype=torch.int64), ValueError), ([0, 1, 2], TypeError)],
)
def test_ids_that_are_none(ids: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="token_ids must"):
        moegate.route(torch.randn(3, 4), RULE, token_ids=ids)  # type: ignore[arg-type]


def test_a_seed_that_is_none() -> None:
    with pytest.raises(TypeError, match="seed must be an integer"):
        moegate.selection.Hash(1, seed="a")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 2**40 - 1])
def test_every_seed_that_is_allowed_routes(seed: int) -> None:
    ids = torch.tensor([0, 1, 129279])
    assert hashed_experts(ids, 8, 2, seed).shape == (3, 2)


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must lie between 0"):
        moegate.selection.Hash(1, seed)
