"""Rule 3: the bias selects, and only selects."""

import hostile
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routers import NUM_EXPERTS, SPARSE, routed
from torch import Tensor

import moegate
from moegate.rule import RoutingRule
from moegate.scoring import SCORES

BIASES = {
    "small": [-0.01, 0.0, 0.001, 0.02],
    "ties": [0.0, -0.0, 0.5, -0.5],
    "huge": [-1e4, 1e4, 5.0, 1e8],
    "broken": [float("nan"), float("inf"), float("-inf"), 0.0],
}


@pytest.mark.parametrize("kind", sorted(SCORES))
@hostile.thorough
@given(data=st.data(), logits=hostile.logits(), bias_kind=st.sampled_from(sorted(BIASES)))
def test_selects_by_the_sum_and_weighs_by_the_score(
    kind: str, data: st.DataObject, logits: Tensor, bias_kind: str
) -> None:
    num_experts = logits.shape[1]
    k = data.draw(hostile.top_k_for(num_experts))
    pool = BIASES[bias_kind]
    bias = torch.tensor([pool[(5 * expert + num_experts) % 4] for expert in range(num_experts)])
    rule = RoutingRule(moegate.selection.TopK(k), score=SCORES[kind]())
    routing = moegate.route(logits, rule, bias=bias)
    seen = moegate.route(logits, rule).selection_scores
    with np.errstate(invalid="ignore", over="ignore"):
        # One rounding in the precision of the scores, as IEEE defines it.
        biased = seen.numpy() + bias.numpy().astype(seen.numpy().dtype)
    assert routing.expert_index.tolist() == oracle.top_k(biased, k)
    if kind != "softmax_selected":
        sound = ~logits.isnan().any(dim=-1)
        gathered = routing.scores.gather(1, routing.expert_index)
        torch.testing.assert_close(routing.weights[sound], gathered[sound], rtol=1e-5, atol=1e-44, equal_nan=True)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "sqrt_softplus"])
def test_selection_scores_are_the_scores_but_for_their_last_bits(kind: str) -> None:
    logits = torch.randn(200, NUM_EXPERTS) * 8
    routing = moegate.route(logits, RoutingRule(score=SCORES[kind]()))
    exact = moegate.route(logits.double(), RoutingRule(score=SCORES[kind]())).scores
    torch.testing.assert_close(routing.selection_scores.double(), exact, rtol=5e-6, atol=1e-44)


def test_a_great_bias_costs_the_weights_nothing() -> None:
    """(s + b) - b would keep no more than two digits of the score here."""
    logits = torch.randn(40, NUM_EXPERTS)
    rule = RoutingRule(moegate.selection.TopK(4), score=moegate.scoring.Sigmoid())
    routing = moegate.route(logits, rule, bias=torch.full((NUM_EXPERTS,), 1e5))
    torch.testing.assert_close(routing.weights, routing.scores.gather(1, routing.expert_index), rtol=3e-7, atol=0)


@pytest.mark.parametrize("rule", SPARSE.values(), ids=SPARSE.keys())
@pytest.mark.parametrize("training", [False, True])
def test_a_bias_of_zero_changes_nothing_but_what_is_ranked(rule: RoutingRule, training: bool) -> None:
    logits = torch.randn(24, NUM_EXPERTS)
    plain = routed(logits, rule.replace(rank_by="scores"), training=training, generator=3)
    zero = routed(logits, rule, training=training, generator=3, bias=torch.zeros(NUM_EXPERTS))
    assert plain.expert_index.equal(zero.expert_index) and plain.weights.equal(zero.weights)


def test_the_bias_gets_no_gradient() -> None:
    logits, bias = torch.randn(4, NUM_EXPERTS, requires_grad=True), torch.zeros(NUM_EXPERTS, requires_grad=True)
    routing = moegate.route(logits, moegate.recipes.mixtral(), bias=bias)
    assert torch.autograd.grad(routing.weights.sum(), bias, allow_unused=True) == (None,)
