"""Relaxed top-k against its formula and finite differences; the straight-through estimator to the bit."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import moegate
from moegate.estimators import Relaxed, StraightThrough, annealed, relaxed_top_k, straight_through
from moegate.rule import RoutingRule
from moegate.selection import TopK


def written_out(logits: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """k softmaxes in a row, each with the mass of those before taken out."""
    result = np.zeros_like(logits)
    for _ in range(k):
        powers = np.exp((logits - logits.max()) / temperature)
        shares = powers / powers.sum()
        result += shares
        logits = logits + np.log1p(-shares)
    return result


@pytest.mark.parametrize("k", [1, 2, 5, 6])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_relaxed_top_k_is_its_formula(k: int, temperature: float) -> None:
    logits = torch.randn(7, 6, dtype=torch.float64)
    ours = relaxed_top_k(logits, k, temperature)
    expected = np.stack([written_out(row, k, temperature) for row in logits.numpy()])
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.sum(dim=-1).numpy(), k, rtol=1e-12)
    assert bool((ours >= 0).all())


@pytest.mark.parametrize("k", [1, 2, 4, 5])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_relaxed_top_k_against_finite_differences(k: int, temperature: float) -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: relaxed_top_k(z, k, temperature), (logits,))


def test_a_cold_relaxation_is_the_hard_choice() -> None:
    logits = torch.rand(20, 8).argsort(dim=-1).float()
    hard = torch.zeros(20, 8).scatter(1, logits.topk(3, dim=-1).indices, 1.0)
    for temperature in (0.1, 0.01, 1e-3, 1e-4):
        torch.testing.assert_close(relaxed_top_k(logits, 3, temperature), hard, atol=1e-3, rtol=0)


@pytest.mark.parametrize("temperature", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_gradients_stay_finite_where_softmaxes_saturate(temperature: float, spread: float) -> None:
    logits = (torch.randn(50, 8) * spread).requires_grad_()
    (grad,) = torch.autograd.grad(relaxed_top_k(logits, 3, temperature).square().sum(), logits)
    assert bool(grad.isfinite().all())


def test_for_one_expert_it_is_the_tempered_softmax() -> None:
    logits = torch.randn(4, 6)
    torch.testing.assert_close(relaxed_top_k(logits, 1, 0.5), (logits / 0.5).softmax(dim=-1))


@pytest.mark.parametrize(("k", "temperature"), [(0, 1.0), (6, 1.0), (2, 0.0), (2, -1.0), (2, float("inf"))])
def test_values_out_of_range(k: int, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"k=|temperature must be"):
        relaxed_top_k(torch.randn(5), k, temperature)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_cold_relaxed_rule_gives_the_hard_weights(top_k: int) -> None:
    logits = torch.rand(20, 6).argsort(dim=-1).double()
    hard = RoutingRule(TopK(top_k))
    relaxed = moegate.route(logits, hard.replace(estimator=Relaxed(1e-3)), training=True)
    expected = moegate.route(logits, hard)
    spread = torch.zeros(20, 6, dtype=torch.float64).scatter(1, expected.expert_index, expected.weights)
    torch.testing.assert_close(relaxed.weights, spread, atol=1e-9, rtol=0)


def test_a_relaxed_rule_is_hard_in_evaluation() -> None:
    logits = torch.randn(20, 6)
    rule = moegate.recipes.gumbel_topk(2, relaxed=True)
    assert moegate.route(logits, rule).expert_index.equal(moegate.route(logits, moegate.recipes.mixtral()).expert_index)


def test_a_relaxed_rule_reaches_experts_that_were_not_chosen() -> None:
    logits = torch.randn(5, 6, requires_grad=True)
    weights = moegate.route(logits, moegate.recipes.gumbel_topk(2, relaxed=True), training=True).weights
    (grad,) = torch.autograd.grad((weights * torch.arange(6)).sum(), logits)
    assert bool((grad != 0).all())


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_straight_through_is_hard_forward_and_soft_backward(temperature: float, top_k: int, scale: float) -> None:
    logits = torch.randn(20, 6, requires_grad=True)
    weighting = moegate.Weighting(renormalize=True, scale=scale)
    hard = RoutingRule(TopK(top_k), weighting=weighting)
    expected = moegate.route(logits.detach(), hard)
    routing = moegate.route(logits, hard.replace(estimator=StraightThrough(temperature)), training=True)
    assert routing.expert_index.equal(expected.expert_index)
    torch.testing.assert_close(routing.weights, expected.weights, rtol=3e-7, atol=0)
    seed = torch.randn_like(routing.weights)
    (grad,) = torch.autograd.grad(routing.weights, logits, seed)
    soft = (logits / temperature).softmax(dim=-1).gather(1, expected.expert_index) * scale
    (of_soft,) = torch.autograd.grad(soft, logits, seed)
    torch.testing.assert_close(grad, of_soft)


def test_straight_through_is_exact_beside_infinities() -> None:
    hard = torch.tensor([1.0, 0.3, 1e-30, float("inf"), -2.0])
    for value in (float("inf"), float("-inf"), float("nan"), 3e38):
        soft = torch.full_like(hard, value, requires_grad=True)
        out = straight_through(hard, soft)
        assert out.equal(hard)


def test_straight_through_weights_are_exact_for_broken_rows() -> None:
    logits = torch.tensor([[float("inf"), 1.0, 0.0], [float("-inf"), 1.0, 0.0], [1e38, -1e38, 0.0]])
    hard = RoutingRule(TopK(2), score=moegate.scoring.Sigmoid())
    expected = moegate.route(logits, hard).weights
    assert moegate.route(logits, hard.replace(estimator=StraightThrough()), training=True).weights.equal(expected)


def test_evaluation_has_the_gradient_of_the_weights() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    hard = RoutingRule(TopK(2), score=moegate.scoring.Sigmoid())
    grads = [
        torch.autograd.grad(moegate.route(logits, rule).weights.sum(), logits)[0]
        for rule in (hard, hard.replace(estimator=StraightThrough()))
    ]
    assert grads[0].equal(grads[1])


@pytest.mark.parametrize("shape", ["exponential", "linear", "cosine"])
def test_annealing_runs_from_start_to_end_and_stays(shape: str) -> None:
    values = [annealed(step, start=2.0, end=0.5, steps=10, shape=shape) for step in range(-2, 15)]
    assert values[0] == values[2] == 2.0 and values[12] == pytest.approx(0.5) == values[-1]
    assert all(later <= earlier for earlier, later in pairwise(values))


def test_annealing_halfway() -> None:
    halfway = {
        shape: annealed(5, start=2.0, end=0.5, steps=10, shape=shape) for shape in ("exponential", "linear", "cosine")
    }
    assert halfway == pytest.approx({"exponential": 1.0, "linear": 1.25, "cosine": 1.25})
    assert annealed(3, start=2.0, end=0.5, steps=0) == 0.5


def test_annealing_a_rule() -> None:
    rule = moegate.recipes.gumbel_topk(2, temperature=2.0, relaxed=True)
    assert rule.at_temperature(0.5).estimator == Relaxed(0.5)
    assert moegate.recipes.mixtral().at_temperature(0.5) == moegate.recipes.mixtral()


@pytest.mark.parametrize("bad", [{"start": 0.0}, {"end": -1.0}, {"shape": "cosin"}])
def test_schedules_that_are_none(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        annealed(1, **{"start": 1.0, "end": 0.5, "steps": 4, **bad})  # type: ignore[arg-type]


def test_combinations_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="relaxes TopK"):
        RoutingRule(moegate.selection.TopP(), estimator=Relaxed())
    with pytest.raises(ValueError, match="leave capacity None"):
        RoutingRule(estimator=Relaxed(), capacity=moegate.Capacity())
    with pytest.raises(ValueError, match=r"use Softmax\(\) with Weighting\(renormalize=True\)"):
        RoutingRule(score=moegate.scoring.SoftmaxSelected(), estimator=Relaxed())
    with pytest.raises(ValueError, match="temperature must be"):
        Relaxed(0.0)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_relaxed_top_k_with_fewer_than_k_experts_that_are_not_masked(temperature: float) -> None:
    logits = torch.tensor([1.0, -float("inf"), -float("inf")], requires_grad=True)
    relaxed = relaxed_top_k(logits, 2, temperature)
    relaxed[0].backward()
    assert relaxed.isfinite().all()
    assert relaxed.sum().item() == pytest.approx(2.0)
    assert logits.grad is not None and logits.grad.isfinite().all()
