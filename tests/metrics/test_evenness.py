"""Metrics of a load vector: NumPy float64 oracles, hand-computed cases, and the values of the edges."""

import math

import numpy as np
import pytest
import torch

import moegate
from moegate import metrics

SCALARS = (
    metrics.max_violation,
    metrics.min_violation,
    metrics.mean_violation,
    metrics.cv,
    metrics.gini,
    metrics.normalized_entropy,
    metrics.effective_experts,
    metrics.used_fraction,
    metrics.dead_fraction,
    metrics.jain,
    metrics.balancedness,
)


def oracle(n: np.ndarray) -> dict[str, float]:
    """Every formula as it is written in the papers."""
    size, mean = len(n), n.mean()
    share = n[n > 0] / n.sum()
    entropy = -np.sum(share * np.log(share))
    return {
        "max_violation": (n.max() - mean) / mean,
        "min_violation": (mean - n.min()) / mean,
        "mean_violation": np.mean(np.abs(n - mean)) / mean,
        "cv": np.std(n) / mean,
        "gini": np.abs(n[:, None] - n[None, :]).sum() / (2 * size**2 * mean),
        "normalized_entropy": entropy / math.log(size),
        "effective_experts": math.exp(entropy),
        "used_fraction": np.mean(n >= 1),
        "dead_fraction": np.mean(n == 0),
        "jain": n.sum() ** 2 / (size * np.sum(n**2)),
        "balancedness": mean / n.max(),
    }


@pytest.mark.parametrize("num_experts", [2, 3, 8, 257])
@pytest.mark.parametrize("skew", [0.0, 3.0])
def test_equal_the_oracle(num_experts: int, skew: float) -> None:
    generator = np.random.default_rng(num_experts)
    n = generator.poisson(np.exp(skew * generator.standard_normal(num_experts))).astype(np.float64) + 0.0
    n[0] += 1
    expected = oracle(n)
    for metric in SCALARS:
        for load in (torch.tensor(n), torch.tensor(n, dtype=torch.int64), n, n.tolist()):
            value = metric(load)
            assert type(value) is float
            assert value == pytest.approx(expected[metric.__name__], rel=1e-12, abs=1e-12), metric.__name__
    np.testing.assert_allclose(metrics.utilization(torch.tensor(n)).numpy(), n / n.mean(), rtol=1e-15)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ([6, 6, 6, 6], [0, 0, 0, 0, 0, 1, 4, 1, 0, 1, 1]),
        ([8, 0, 0, 0], [3, 1, 1.5, 3**0.5, 0.75, 0, 1, 0.25, 0.75, 0.25, 0.25]),
        ([4, 4, 0, 0], [1, 1, 1, 1, 0.5, 0.5, 2, 0.5, 0.5, 0.5, 0.5]),
        ([5], [0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1]),
    ],
    ids=["even", "one expert", "two of four", "a single expert"],
)
def test_by_hand(load: list[int], expected: list[float]) -> None:
    assert [metric(load) for metric in SCALARS] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_experts", [1, 4])
def test_without_load_an_average_is_nan_and_every_expert_is_unused(num_experts: int) -> None:
    for metric in SCALARS:
        value = metric([0] * num_experts)
        if metric is metrics.used_fraction:
            assert value == 0.0
        elif metric is metrics.dead_fraction:
            assert value == 1.0
        else:
            assert math.isnan(value), metric.__name__
    assert metrics.utilization([0] * num_experts).isnan().all()


def test_scale_does_not_matter_nor_does_order() -> None:
    load = torch.tensor([5, 1, 0, 9, 3])
    for metric in SCALARS:
        assert metric(load * 1000) == pytest.approx(metric(load), rel=1e-12)
        assert metric(load.flip(0)) == pytest.approx(metric(load), rel=1e-12)


def test_counts_beyond_float32_are_exact() -> None:
    load = torch.tensor([2**24 + 1, 2**24 - 1])
    assert metrics.max_violation(load) == pytest.approx(2.0**-24, rel=1e-6)


def test_dead_fraction_with_a_threshold() -> None:
    assert metrics.dead_fraction([10, 10, 1, 0, 29], threshold=0.05) == pytest.approx(1 / 5)
    assert metrics.dead_fraction([10, 10, 1, 0, 29], threshold=0.11) == pytest.approx(2 / 5)
    assert metrics.dead_fraction([10, 10, 1, 0, 29], threshold=1.0) == pytest.approx(2 / 5)  # n̄ itself is not dead


def test_a_routing_is_read_before_dropping_and_without_padding() -> None:
    mask = torch.arange(20) < 12
    routing = moegate.route(torch.randn(20, 5), moegate.recipes.mixtral(top_k=2), token_mask=mask)
    kept = routing.expert_index.clone()
    kept[:6] = -1
    dropped = routing.with_assignment(kept, routing.weights)
    counts = np.bincount(routing.selected_index[:12].reshape(-1).numpy(), minlength=5)
    assert metrics.load(dropped).tolist() == counts.tolist()
    after = np.bincount(routing.selected_index[6:12].reshape(-1).numpy(), minlength=5)
    assert metrics.load(dropped, dropped=True).tolist() == after.tolist()
    for metric in SCALARS:
        assert metric(dropped) == metric(counts)


@pytest.mark.parametrize("load", [torch.zeros(2, 3), torch.zeros(0), torch.tensor(3)])
def test_a_load_that_is_no_vector_is_refused(load: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be a vector with one entry per expert: pass a Routing"):
        metrics.cv(load)


def test_a_negative_load_is_refused() -> None:
    with pytest.raises(ValueError, match=r"negative entry \(-2\)"):
        metrics.gini([1, -2, 3])
