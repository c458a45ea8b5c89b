"""Rule 11: no tokens are a valid input, with results of the right shapes."""

import pytest
import torch
from routers import NUM_EXPERTS, RULES, routed

import moegate
from moegate.rule import RoutingRule


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (2, 0, 3)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_no_tokens(rule: RoutingRule, shape: tuple[int, ...], training: bool, masked: bool) -> None:
    logits = torch.randn(*shape, NUM_EXPERTS, requires_grad=True)
    mask = torch.ones(shape, dtype=torch.bool) if masked else None
    routing = routed(logits, rule, training=training, generator=1, token_mask=mask)
    assert routing.num_tokens == 0 and routing.real_tokens.item() == 0 and routing.batch_shape == shape
    assert routing.expert_index.shape == routing.weights.shape == (0, routing.top_k) and routing.top_k > 0
    assert routing.load.tolist() == [0] * routing.num_experts == routing.selected_load.tolist()
    assert [values.shape for values in routing.edges()] == [(0,), (0,), (0,)]
    assert routing.probabilities.shape == (0, routing.num_experts)
    if routing.weights.requires_grad:
        (grad,) = torch.autograd.grad(routing.weights.sum(), logits)
        assert grad.shape == logits.shape


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_one_token_without_a_leading_dimension(rule: RoutingRule) -> None:
    routing = routed(torch.randn(NUM_EXPERTS), rule)
    assert routing.batch_shape == () and routing.num_tokens == 1


def test_one_expert_is_valid() -> None:
    routing = moegate.route(torch.randn(5, 1), moegate.RoutingRule(moegate.selection.TopK(1)))
    assert routing.expert_index.tolist() == [[0]] * 5 and routing.weights.tolist() == [[1.0]] * 5
