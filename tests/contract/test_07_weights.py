"""Rule 7: renormalise divides by (sum + eps); the scale is a second, separate rounding."""

import hostile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moegate
from moegate.rule import RoutingRule
from moegate.scoring import SCORES

FINITE_SCORES = sorted(set(SCORES) - {"softmax_selected"})


def exact_scores(kind: str, logits: Tensor) -> np.ndarray:
    """The scores in float64, from the logits as they were rounded."""
    z = logits.double().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        if kind == "softmax":
            shifted = np.exp(z - z.max(axis=1, keepdims=True))
            return shifted / shifted.sum(axis=1, keepdims=True)
        return {
            "sigmoid": lambda: 1 / (1 + np.exp(-z)),
            "sqrt_softplus": lambda: np.sqrt(np.logaddexp(0, z)),
            "identity": lambda: z,
            "relu": lambda: np.maximum(z, 0),
            "constant": lambda: np.ones_like(z),
        }[kind]()


def assert_within_two_ulp(actual: Tensor, expected: np.ndarray) -> None:
    rounded = expected.astype(np.float32)
    ulp = np.spacing(np.abs(rounded)).astype(np.float64)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(actual.numpy()[~finite], rounded[~finite])
    assert (np.abs(actual.double().numpy() - expected)[finite] <= 2 * ulp[finite]).all()


@pytest.mark.parametrize("kind", FINITE_SCORES)
@hostile.thorough
@given(
    logits=hostile.logits(sizes=(2, 5, 16), kinds=("plain", "ties", "zeros", "sunken"), dtypes=(torch.float32,)),
    eps=st.sampled_from([0.0, 1e-20, 1e-6, 0.5]),
    scale=st.sampled_from([1.0, 2.5, 16.0, 1 / 3]),
)
def test_two_weights_within_two_ulp(kind: str, logits: Tensor, eps: float, scale: float) -> None:
    """The quotient is rounded to float32, and then multiplied by the scale as float32 holds it."""
    weighting = moegate.Weighting(renormalize=True, eps=eps, scale=scale)
    rule = RoutingRule(moegate.selection.TopK(2), score=SCORES[kind](), weighting=weighting)
    routing = moegate.route(logits, rule)
    chosen = np.take_along_axis(exact_scores(kind, logits), routing.expert_index.numpy(), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = (chosen / (chosen.sum(axis=1, keepdims=True) + eps)).astype(np.float32) * np.float32(scale)
    assert_within_two_ulp(routing.weights, expected.astype(np.float64))


@pytest.mark.parametrize("kind", FINITE_SCORES)
def test_two_weights_to_the_bit_in_float64(kind: str) -> None:
    """Composed, a sum of two has one rounding, so every bit is known: sum, plus eps, quotient, times scale."""
    logits = torch.randn(200, 5, dtype=torch.float64)
    weighting = moegate.Weighting(renormalize=True, eps=1e-6, scale=2.5)
    rule = RoutingRule(moegate.selection.TopK(2), score=SCORES[kind](), weighting=weighting)
    routing = moegate.route(logits, rule)
    chosen = routing.scores.gather(1, routing.expert_index).numpy()
    expected = chosen / ((chosen[:, :1] + chosen[:, 1:]) + 1e-6) * 2.5
    np.testing.assert_array_equal(routing.weights.numpy(), expected)


@hostile.thorough
@given(data=st.data(), logits=hostile.logits(kinds=("plain", "ties"), dtypes=(torch.float32, torch.float64)))
def test_many_weights_to_rounding(data: st.DataObject, logits: Tensor) -> None:
    k = data.draw(hostile.top_k_for(logits.shape[1]))
    weighting = moegate.Weighting(renormalize=True, eps=1e-6, scale=2.5)
    routing = moegate.route(
        logits, RoutingRule(moegate.selection.TopK(k), score=moegate.scoring.Sigmoid(), weighting=weighting)
    )
    chosen = 1 / (1 + np.exp(-logits.double().numpy()))
    chosen = np.take_along_axis(chosen, routing.expert_index.numpy(), axis=1)
    expected = chosen / (chosen.sum(axis=1, keepdims=True) + 1e-6) * 2.5
    np.testing.assert_allclose(routing.weights.numpy(), expected, rtol=2e-6 if logits.dtype != torch.float64 else 1e-14)


def test_the_scale_is_not_folded_into_the_quotient() -> None:
    """Some of these rows differ between a rounded quotient times the scale and a product that is rounded once."""
    logits = torch.randn(4000, 8)
    weighting = moegate.Weighting(renormalize=True, scale=2.5)
    rule = RoutingRule(moegate.selection.TopK(2), score=moegate.scoring.Sigmoid(), weighting=weighting)
    routing = moegate.route(logits, rule)
    chosen = np.take_along_axis(exact_scores("sigmoid", logits), routing.expert_index.numpy(), axis=1)
    quotient = chosen / chosen.sum(axis=1, keepdims=True)
    separate, folded = quotient.astype(np.float32) * np.float32(2.5), (quotient * 2.5).astype(np.float32)
    weights = routing.weights.numpy()
    assert (separate != folded).sum() > 100
    # A quotient that lies almost in the middle between two float32 numbers may be rounded to the other.
    assert (weights != separate).sum() <= 4


def test_without_renormalisation_the_weights_are_the_scores() -> None:
    logits = torch.randn(50, 16)
    routing = moegate.route(logits, RoutingRule(moegate.selection.TopK(5)))
    chosen = np.take_along_axis(exact_scores("softmax", logits), routing.expert_index.numpy(), axis=1)
    assert_within_two_ulp(routing.weights, chosen)


def test_scores_that_all_vanish_give_zero_weights_not_nan() -> None:
    logits = torch.full((3, 4), -200.0)
    rule = RoutingRule(
        moegate.selection.TopK(2), score=moegate.scoring.Sigmoid(), weighting=moegate.Weighting(renormalize=True)
    )
    assert moegate.route(logits, rule).weights.tolist() == [[0.0, 0.0]] * 3


def test_the_article_example_renormalises_the_chosen_probabilities() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]])
    routing = moegate.route(probabilities.log(), moegate.recipes.mixtral(top_k=2))
    assert routing.expert_index.tolist() == [[0, 1], [3, 2]]
    torch.testing.assert_close(routing.weights, torch.tensor([[0.625, 0.375]] * 2))
