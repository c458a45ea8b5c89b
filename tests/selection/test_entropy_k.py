"""Entropy-driven k: the article's ladder (1 below τ, 2 below 2τ, max_k above) and any other."""

import math

import numpy as np
import pytest
import torch

import moegate
from moegate.selection import EntropyK


def counts(logits: torch.Tensor, rule: moegate.RoutingRule) -> list[int]:
    return (moegate.route(logits, rule).expert_index >= 0).sum(dim=-1).tolist()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_the_ladder_of_the_article(threshold: float) -> None:
    logits = torch.randn(300, 8, dtype=torch.float64) * 4
    logits[:100] /= 8
    shares = np.exp(logits.numpy())
    shares /= shares.sum(axis=1, keepdims=True)
    expected = []
    for row in shares:
        entropy = -sum(p * math.log(p) for p in row)
        expected.append(1 if entropy < threshold else 2 if entropy < 2 * threshold else 5)
    assert set(expected) == {1, 2, 5}
    assert counts(logits, moegate.recipes.entropy_k(threshold, max_k=5)) == expected


def test_hand_computed_entropies() -> None:
    """ln 2 for two equal halves, ln 4 for four quarters, 0 for a certainty."""
    logits = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4, [1.0, 0, 0, 0]]).log()
    rule = moegate.RoutingRule(EntropyK(thresholds=(0.69, 0.70, 1.38, 1.39), counts=(1, 2, 3, 4, 4)))
    assert counts(logits, rule) == [2, 4, 1]


def test_an_entropy_equal_to_the_threshold_takes_the_next_step() -> None:
    rule = moegate.RoutingRule(EntropyK(thresholds=(0.0,), counts=(1, 2)))
    assert counts(torch.tensor([[1.0, float("-inf"), float("-inf")]]), rule) == [2]


def test_any_ladder() -> None:
    rule = moegate.RoutingRule(EntropyK(thresholds=(), counts=(3,)))
    assert counts(torch.randn(5, 4), rule) == [3] * 5
    falling = moegate.RoutingRule(EntropyK(thresholds=(0.5,), counts=(3, 1)))
    assert counts(torch.tensor([[50.0, 0, 0, 0], [0.0, 0, 0, 0]]), falling) == [3, 1]


def test_a_nan_takes_the_last_count() -> None:
    assert counts(torch.tensor([[float("nan"), 1.0, 2.0, 3.0]]), moegate.recipes.entropy_k(max_k=4)) == [4]


def test_the_recipe_at_small_max_k() -> None:
    for max_k in (1, 2):
        assert max(counts(torch.zeros(3, 4), moegate.recipes.entropy_k(max_k=max_k))) == max_k


def test_lists_are_taken_as_tuples() -> None:
    rule = moegate.RoutingRule(EntropyK([0.5, 1.0], [1, 2, 4]))  # type: ignore[arg-type]
    assert rule == moegate.RoutingRule(EntropyK()) and hash(rule) == hash(moegate.RoutingRule(EntropyK()))


@pytest.mark.parametrize(
    ("thresholds", "steps", "message"),
    [
        ((0.5, 1.0), (1, 2), "2 thresholds make 3 steps, but counts has 2"),
        ((1.0, 0.5), (1, 2, 3), "thresholds must increase"),
        ((0.5, 0.5), (1, 2, 3), "thresholds must increase"),
        ((0.5,), (0, 1), "counts must be at least 1"),
    ],
)
def test_ladders_that_are_none(thresholds: tuple[float, ...], steps: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropyK(thresholds, steps)


def test_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match="top_k=4 exceeds the 3 experts"):
        moegate.route(torch.randn(1, 3), moegate.RoutingRule(EntropyK()))
