"""Rule 10: exact gradients for the weights, none through the indices unless the rule says so."""

import pytest
import torch
from routers import NUM_EXPERTS, RULES, SPARSE, routed
from torch import Tensor

import moegate
from moegate.estimators import StraightThrough
from moegate.rule import RoutingRule
from moegate.scoring import SCORES

# Sums of distinct logits may tie.
EXACT = {
    name: rule
    for name, rule in RULES.items()
    if not isinstance(rule.estimator, StraightThrough) and name != "product keys"
}


def logits_without_near_ties(tokens: int, num_experts: int = NUM_EXPERTS) -> Tensor:
    """Far enough apart, within a row and between the rows, that a step of 1e-6 changes no selection."""
    ranks = torch.rand(tokens, num_experts).argsort(dim=-1)
    stretch = 0.1 + 0.013 * torch.arange(tokens)[:, None]
    return ((ranks - num_experts / 2 + 0.3) * stretch).double().requires_grad_()


@pytest.mark.parametrize("rule", EXACT.values(), ids=EXACT.keys())
@pytest.mark.parametrize("training", [False, True])
def test_weights_against_finite_differences(rule: RoutingRule, training: bool) -> None:
    logits = logits_without_near_ties(4)
    mask = torch.tensor([True, True, False, True])
    if rule.score.kind == "constant":
        assert not routed(logits, rule, training=training).weights.requires_grad
        return
    if training and isinstance(rule.selection, moegate.selection.SparseMixer):
        # Its gradient is an estimate; what of is told in tests/selection.
        return

    def weights(logits: Tensor) -> Tensor:
        return routed(logits, rule, training=training, generator=3, token_mask=mask).weights

    assert torch.autograd.gradcheck(weights, (logits,))


@pytest.mark.parametrize("kind", sorted(set(SCORES) - {"constant"}))
def test_second_derivatives_of_every_score(kind: str) -> None:
    rule = RoutingRule(
        moegate.selection.TopK(3), score=SCORES[kind](), weighting=moegate.Weighting(renormalize=True, scale=2.5)
    )
    logits = logits_without_near_ties(2, 6)
    logits = (logits.detach() + 2.0).requires_grad_()  # ReLU has no second derivative to check at zero
    assert torch.autograd.gradgradcheck(lambda z: moegate.route(z, rule).weights, (logits,))


@pytest.mark.parametrize("rule", SPARSE.values(), ids=SPARSE.keys())
@pytest.mark.parametrize("training", [False, True])
def test_what_selection_looks_at_carries_no_gradient(rule: RoutingRule, training: bool) -> None:
    logits = torch.randn(6, NUM_EXPERTS, requires_grad=True)
    routing = routed(logits, rule, training=training, generator=3)
    assert not routing.ranking.requires_grad
    assert not routing.expert_index.requires_grad and not routing.load.requires_grad


def test_experts_that_were_not_chosen_get_exactly_none() -> None:
    logits = torch.randn(20, NUM_EXPERTS, requires_grad=True)
    rule = RoutingRule(moegate.selection.TopK(3), score=moegate.scoring.Sigmoid())
    routing = moegate.route(logits, rule)
    (grad,) = torch.autograd.grad(routing.weights.sum(), logits)
    chosen = torch.zeros(20, NUM_EXPERTS, dtype=torch.bool).scatter(1, routing.expert_index, True)
    assert not grad[~chosen].any() and bool((grad[chosen] > 0).all())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "sqrt_softplus", "softmax_selected"])
@pytest.mark.parametrize("value", [-1e4, -104.0, 0.0, 104.0, 1e4])
def test_saturated_rows_have_finite_gradients(kind: str, value: float) -> None:
    logits = torch.full((2, 4), value).add(torch.arange(4.0)).requires_grad_()
    rule = RoutingRule(
        moegate.selection.TopK(2), score=SCORES[kind](), weighting=moegate.Weighting(renormalize=True, eps=1e-6)
    )
    routing = moegate.route(logits, rule)
    (grad,) = torch.autograd.grad(routing.weights[:, 0].sum(), logits)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "sqrt_softplus", "softmax_selected", "relu"])
def test_an_expert_at_minus_infinity_has_a_gradient_of_zero(kind: str) -> None:
    logits = torch.tensor([[1.0, float("-inf"), 2.0]], requires_grad=True)
    routing = moegate.route(logits, RoutingRule(moegate.selection.TopK(2), score=SCORES[kind]()))
    (grad,) = torch.autograd.grad(routing.weights[:, 0].sum(), logits)
    assert bool(grad.isfinite().all()) and grad[0, 1].item() == 0.0


@pytest.mark.parametrize("name", sorted(set(EXACT) - {"hash_routing", "random_routing", "soft_moe"}))
def test_a_broken_token_spoils_no_other_gradient(name: str) -> None:
    """Of the three left out, two have no gradient, and the third mixes all tokens by design."""
    logits = torch.randn(6, NUM_EXPERTS)
    logits[2, 4] = float("nan")
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(routed(logits, EXACT[name]).weights.nansum(), logits)
    assert bool(grad[[0, 1, 3, 4, 5]].isfinite().all())


def test_one_renormalised_weight_has_no_gradient_and_says_so() -> None:
    logits = torch.randn(5, 8, requires_grad=True)
    rule = moegate.recipes.mixtral(top_k=1).replace(weighting=moegate.Weighting(renormalize=True, scale=1.25))
    with pytest.warns(UserWarning, match="no gradient"):
        routing = moegate.route(logits, rule)
    (grad,) = torch.autograd.grad(routing.weights.sum(), logits)
    assert float(grad.abs().max()) < 1e-6
