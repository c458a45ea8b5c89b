"""Co-activation and domain tables against loops, mutual information against its definition."""

import itertools
import math

import numpy as np
import pytest
import torch

import moegate
from moegate import metrics

RULE = moegate.recipes.mixtral(top_k=3)


def test_coactivation_equals_a_loop() -> None:
    mask = torch.rand(50) < 0.7
    routing = moegate.route(torch.randn(50, 6), RULE, token_mask=mask)
    expected = np.zeros((6, 6), dtype=np.int64)
    for row in routing.selected_index[mask].tolist():
        for one, other in itertools.product(row, row):
            expected[one, other] += 1
    pairs = metrics.coactivation(routing)
    assert pairs.dtype == torch.int64
    assert pairs.tolist() == expected.tolist()
    assert pairs.diagonal().tolist() == metrics.load(routing).tolist()
    share = expected / mask.sum().item()
    lift = share / np.outer(share.diagonal(), share.diagonal())
    np.testing.assert_allclose(metrics.coactivation_lift(routing).numpy(), lift, rtol=1e-12)


def test_lift_of_even_random_routing_is_the_competition_of_k() -> None:
    routing = moegate.route(torch.randn(50_000, 6), RULE)
    off_diagonal = metrics.coactivation_lift(routing)[~torch.eye(6, dtype=torch.bool)]
    expected = torch.full((30,), 6 * 2 / (3 * 5), dtype=torch.float64)
    torch.testing.assert_close(off_diagonal, expected, rtol=0.03, atol=0)


def test_lift_of_an_unused_expert_is_nan() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, -9.0]] * 4)
    lift = metrics.coactivation_lift(moegate.route(logits, RULE))
    assert lift[3].isnan().all() and lift[:, 3].isnan().all() and lift[:3, :3].tolist() == [[1.0] * 3] * 3


@pytest.mark.parametrize("shape", [(30,), (5, 6)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_domain_load_equals_a_loop(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    domains = torch.randint(0, 4, (30,))
    mask = torch.rand(30) < 0.6
    routing = moegate.route(torch.randn(*shape, 6), RULE, token_mask=mask.reshape(shape))
    expected = np.zeros((4, 6), dtype=np.int64)
    for domain, row, real in zip(domains.tolist(), routing.selected_index.tolist(), mask.tolist(), strict=True):
        for expert in row if real else []:
            expected[domain, expert] += 1
    for ids in (domains.to(dtype), domains.to(dtype).reshape(shape)):
        table = metrics.domain_load(routing, ids, 4)
        assert table.dtype == torch.int64 and table.tolist() == expected.tolist()
    assert table.sum(0).tolist() == metrics.load(routing).tolist()


def test_ids_of_padding_may_be_anything() -> None:
    mask = torch.tensor([True, True, False])
    routing = moegate.route(torch.randn(3, 6), RULE, token_mask=mask)
    assert metrics.domain_load(routing, torch.tensor([0, 1, -100]), 2).sum() == 6


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(3), TypeError, "domain_ids is torch.float32: pass one integer per token"),
        (torch.zeros(3, dtype=torch.bool), TypeError, "domain_ids is torch.bool"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"shape \(4,\), but there are 3 tokens"),
        (torch.tensor([0, 1, 2]), ValueError, "from 0 to 2, but num_domains=2 allows 0 to 1"),
        (torch.tensor([0, 1, -1]), ValueError, "from -1 to 1"),
    ],
)
def test_bad_domain_ids_are_refused(ids: torch.Tensor, error: type[Exception], message: str) -> None:
    routing = moegate.route(torch.randn(3, 6), RULE)
    with pytest.raises(error, match=message):
        metrics.domain_load(routing, ids, 2)


def test_mutual_information_is_that_of_the_definition() -> None:
    table = torch.randint(0, 9, (4, 7))
    share = table.double().numpy() / table.sum().item()
    information = 0.0
    for domain, expert in itertools.product(range(4), range(7)):
        p = share[domain, expert]
        if p > 0:
            information += p * math.log(p / (share[domain].sum() * share[:, expert].sum()))
    entropies = [-sum(p * math.log(p) for p in share.sum(axis) if p > 0) for axis in (0, 1)]
    assert metrics.domain_mutual_information(table) == pytest.approx(information, rel=1e-10)
    assert metrics.domain_nmi(table) == pytest.approx(information / (sum(entropies) / 2), rel=1e-10)


@pytest.mark.parametrize(
    ("table", "information", "nmi"),
    [
        ([[4, 4], [2, 2]], 0.0, 0.0),
        ([[5, 0], [0, 5]], math.log(2), 1.0),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], math.log(3), 1.0),
        ([[7, 0]], 0.0, 1.0),
        ([[0, 0], [3, 0]], 0.0, 1.0),
        ([[3, 3]], 0.0, 0.0),
    ],
)
def test_information_by_hand(table: list[list[int]], information: float, nmi: float) -> None:
    counts = torch.tensor(table)
    assert metrics.domain_mutual_information(counts) == pytest.approx(information, abs=1e-12)
    assert metrics.domain_nmi(counts) == pytest.approx(nmi, abs=1e-12)


def test_independent_domains_read_about_the_stated_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    readings = []
    for _ in range(50):
        routing = moegate.route(torch.randn(500, 6, generator=generator), moegate.recipes.mixtral(top_k=2))
        domains = torch.randint(0, 4, (500,), generator=generator)
        readings.append(metrics.domain_mutual_information(metrics.domain_load(routing, domains, 4)))
    assert sum(readings) / 50 == pytest.approx(3 * 5 / (2 * 1000), rel=0.25)


def test_empty_tables_are_nan_and_vectors_are_refused() -> None:
    empty = metrics.domain_load(moegate.route(torch.randn(0, 6), RULE), torch.zeros(0, dtype=torch.int64), 2)
    assert empty.tolist() == [[0] * 6] * 2
    assert math.isnan(metrics.domain_mutual_information(empty)) and math.isnan(metrics.domain_nmi(empty))
    with pytest.raises(ValueError, match=r"shape \(6,\): pass the \[num_domains, num_experts\] table"):
        metrics.domain_nmi(torch.zeros(6))


def test_no_tokens_give_empty_matrices() -> None:
    routing = moegate.route(torch.randn(0, 6), RULE)
    assert not metrics.coactivation(routing).any()
    assert metrics.coactivation_lift(routing).isnan().all()
