"""Scores at the edges; values for all logits are in the tests of the contract (rule 1)."""

import math

import pytest
import torch

from moegate.scoring import SCORES, Score, SqrtSoftplus, gather_slots


@pytest.mark.parametrize("kind", sorted(SCORES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_greater_logit_never_has_a_smaller_score(kind: str, dtype: torch.dtype) -> None:
    assert SCORES[kind].monotone
    grid = torch.cat(
        [torch.linspace(-120, 120, 4801, dtype=dtype), torch.tensor([-1e4, 1e4, -1e-6, 1e-6], dtype=dtype)]
    )
    scores = SCORES[kind]().scores(grid.sort().values[None])[0]
    assert bool((scores.diff() >= 0).all())


@pytest.mark.parametrize("kind", ["sigmoid", "sqrt_softplus", "relu", "identity"])
def test_infinite_logits(kind: str) -> None:
    scores = SCORES[kind]().scores(torch.tensor([[math.inf, -math.inf]]))[0].tolist()
    top = 1.0 if kind == "sigmoid" else math.inf
    assert scores == [top, -math.inf if kind == "identity" else 0.0]


@pytest.mark.parametrize("value", [-1e4, -177.0, -90.0, -40.0, -39.99, -1.0, 0.0, 1.0, 88.0, 178.0, 1e4, 3e38])
def test_the_gradient_of_sqrt_softplus_is_finite_and_right(value: float) -> None:
    """s' = sigmoid(z) / (2 s); far below zero s is exp(z / 2), and s' half of that."""
    logit = torch.tensor([[value]], requires_grad=True)
    (grad,) = torch.autograd.grad(SqrtSoftplus().scores(logit).sum(), logit)
    if value < -30:
        expected = 0.5 * math.exp(max(value, -700) / 2)
    else:
        softplus = max(value, 0.0) + math.log1p(math.exp(-abs(value)))
        expected = 1 / (1 + math.exp(-value)) / (2 * math.sqrt(softplus))
    assert grad.item() == pytest.approx(expected, rel=1e-5, abs=1e-37)


def test_gathering_leaves_empty_slots_at_the_fill() -> None:
    values, index = torch.tensor([[1.0, 2.0, float("nan")]]), torch.tensor([[1, -1, 0]])
    assert gather_slots(values, index, fill=-3.0).tolist() == [[2.0, -3.0, 1.0]]


def test_softmax_over_no_chosen_expert_is_zero() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    weights = SCORES["softmax_selected"]().weights(logits, logits, torch.tensor([[-1, -1], [2, -1]]))
    assert weights.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    (grad,) = torch.autograd.grad(weights.sum(), logits)
    assert bool(grad.isfinite().all())


def test_the_family_itself_scores_nothing() -> None:
    with pytest.raises(TypeError, match="Score is abstract: choose one of softmax"):
        Score().scores(torch.zeros(1, 2))
