"""Rule 9: the same row gives the same bits, whatever is around it; evaluation draws nothing."""

from collections.abc import Callable, Iterator

import hostile
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routers import NUM_EXPERTS, ROW_WISE, RULES, routed
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from triton_support import ON_TRITON, not_on_triton

import moegate
from moegate.records import Routing
from moegate.rule import RoutingRule
from moegate.scoring import SCORES

row_wise = pytest.mark.parametrize("rule", ROW_WISE.values(), ids=ROW_WISE.keys())
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def same_bits(ours: Routing, expected: Routing, rows: Tensor | slice = slice(None)) -> bool:
    return ours.expert_index.equal(expected.expert_index[rows]) and bits(ours.weights).equal(
        bits(expected.weights[rows])
    )


def bits(values: Tensor) -> Tensor:
    return values.detach().contiguous().view(torch.int64 if values.dtype == torch.float64 else torch.int32)


@row_wise
@hostile.brief
@given(logits=hostile.logits(sizes=(NUM_EXPERTS,), max_tokens=12), seed=st.integers(0, 999))
def test_a_row_does_not_see_its_batch(rule: RoutingRule, logits: Tensor, seed: int) -> None:
    ids = torch.arange(logits.shape[0])
    batch = routed(logits, rule, token_ids=ids)
    order = torch.randperm(logits.shape[0], generator=torch.Generator().manual_seed(seed))
    assert same_bits(routed(logits[order], rule, token_ids=ids[order]), batch, order)
    for row in range(logits.shape[0]):
        assert same_bits(routed(logits[row : row + 1], rule, token_ids=ids[row : row + 1]), batch, slice(row, row + 1))
        assert same_bits(routed(logits[row].clone(), rule, token_ids=ids[row]), batch, slice(row, row + 1))


@pytest.mark.parametrize("kind", sorted(SCORES))
@pytest.mark.parametrize("num_experts", [1, 7, 8, 13, 64, 100, 257])
def test_rows_of_every_width_do_not_see_their_batch(kind: str, num_experts: int) -> None:
    """Widths around the sizes of vector registers, where kernels treat a remainder in another way."""
    rows = 9 if ON_TRITON else 65
    for dtype in (torch.float32, torch.float64):
        logits = torch.randn(rows, num_experts, dtype=dtype) * 3
        for k in {1, min(2, num_experts), min(11, num_experts), num_experts}:
            weighting = moegate.Weighting(renormalize=True, scale=2.5)
            rule = RoutingRule(moegate.selection.TopK(k), score=SCORES[kind](), weighting=weighting)
            batch = moegate.route(logits, rule)
            for part in (slice(0, 1), slice(rows - 1, rows), slice(3, 20)):
                assert same_bits(moegate.route(logits[part], rule), batch, part), (dtype, k)
                assert same_bits(moegate.route(logits[part].clone(), rule), batch, part), (dtype, k)


@row_wise
@hostile.brief
@given(data=st.data(), layout=st.sampled_from(hostile.LAYOUTS))
def test_strides_and_shapes_do_not_matter(rule: RoutingRule, data: st.DataObject, layout: str) -> None:
    logits = data.draw(hostile.logits(sizes=(NUM_EXPERTS,))).contiguous()
    expected = routed(logits, rule)
    assert same_bits(routed(hostile.laid_out(logits, layout), rule), expected)
    assert same_bits(routed(logits.view(1, -1, 1, NUM_EXPERTS), rule), expected)


@not_on_triton("the interpreter has no threads")
@every_rule
def test_the_number_of_threads_does_not_matter(rule: RoutingRule, threads: Callable[[int], None]) -> None:
    """Enough rows that every kernel splits them among its threads."""
    logits = torch.randn(5000, NUM_EXPERTS)
    threads(1)
    expected = routed(logits, rule)
    for count in (2, 3):
        threads(count)
        assert same_bits(routed(logits, rule), expected)


@every_rule
@pytest.mark.parametrize("generator", [None, 11], ids=["default generator", "seed"])
def test_recomputation_under_checkpointing_routes_alike(rule: RoutingRule, generator: int | None) -> None:
    seen: list[Routing] = []

    def forward(logits: Tensor) -> Tensor:
        seen.append(routed(logits, rule, training=True, generator=generator))
        return (seen[-1].weights * (seen[-1].expert_index + 1)).sum()

    logits = torch.randn(30, NUM_EXPERTS, requires_grad=True)
    value = checkpoint(forward, logits, use_reentrant=False)
    torch.rand(3)  # what happens between the forward and the backward must not matter
    if value.requires_grad:
        value.backward()
        first, again = seen
        assert same_bits(again, first)
        assert first.noisy_logits is None or bits(again.noisy_logits).equal(bits(first.noisy_logits))
    else:
        assert rule.score.kind == "constant"


@every_rule
def test_a_seed_draws_the_same_and_leaves_the_default_generator_alone(rule: RoutingRule) -> None:
    logits, before = torch.randn(30, NUM_EXPERTS), torch.get_rng_state()
    first, again = (routed(logits, rule, training=True, generator=5) for _ in range(2))
    assert same_bits(again, first)
    assert torch.get_rng_state().equal(before)
    from_generator = routed(logits, rule, training=True, generator=torch.Generator().manual_seed(5))
    assert same_bits(from_generator, first)


@every_rule
def test_evaluation_draws_nothing(rule: RoutingRule) -> None:
    generator = torch.Generator().manual_seed(5)
    before, default = generator.get_state(), torch.get_rng_state()
    logits = torch.randn(30, NUM_EXPERTS, generator=torch.Generator().manual_seed(1))
    routing = routed(logits, rule, training=False, generator=generator)
    assert generator.get_state().equal(before) and torch.get_rng_state().equal(default)
    assert routing.noisy_logits is None
    assert same_bits(routed(logits, rule, training=False), routing)


def test_a_generator_that_has_moved_on_is_refused_in_a_recomputation() -> None:
    rule, generator = moegate.recipes.gumbel_topk(), torch.Generator().manual_seed(1)
    logits = torch.randn(4, 8, requires_grad=True)
    value = checkpoint(
        lambda z: moegate.route(z, rule, training=True, generator=generator).weights.square().sum(),
        logits,
        use_reentrant=False,
    )
    with pytest.raises(ValueError, match="integer seed"):
        value.backward()
