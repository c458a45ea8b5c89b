"""Rule 6: masked tokens get no expert and no weight, count nowhere, and what they hold reaches nothing."""

import pytest
import torch
from routers import NUM_EXPERTS, ROW_WISE, RULES, routed

from moegate.rule import RoutingRule

MASK = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
both_modes = pytest.mark.parametrize("training", [False, True])


@every_rule
@both_modes
def test_masked_tokens_get_nothing(rule: RoutingRule, training: bool) -> None:
    routing = routed(torch.randn(2, 5, NUM_EXPERTS), rule, training=training, generator=1, token_mask=MASK)
    hidden = ~MASK.flatten()
    assert bool((routing.expert_index[hidden] == -1).all()) and bool((routing.selected_index[hidden] == -1).all())
    assert not routing.weights[hidden].any()
    assert not routing.probabilities[hidden].any()
    assert routing.real_tokens.item() == 7
    assert routing.load.sum().item() == int((routing.expert_index >= 0).sum())
    assert bool(MASK.flatten()[routing.edges().token].all())


@every_rule
@both_modes
def test_what_padding_holds_changes_nothing(rule: RoutingRule, training: bool) -> None:
    clean = torch.randn(2, 5, NUM_EXPERTS)
    dirty = clean.clone()
    dirty[~MASK] = torch.tensor([float("nan"), float("inf"), float("-inf"), 3e38] * (NUM_EXPERTS // 4))
    clean.requires_grad_()
    dirty.requires_grad_()
    ours = routed(dirty, rule, training=training, generator=1, token_mask=MASK)
    expected = routed(clean, rule, training=training, generator=1, token_mask=MASK)
    assert ours.expert_index.equal(expected.expert_index) and ours.weights.equal(expected.weights)
    if ours.weights.requires_grad:
        grads = [
            torch.autograd.grad((routing.weights * (routing.expert_index + 1)).sum(), logits)[0]
            for routing, logits in ((ours, dirty), (expected, clean))
        ]
        assert grads[0].equal(grads[1])
        assert not grads[0][~MASK].any() and not grads[0].isnan().any()


@pytest.mark.parametrize("rule", ROW_WISE.values(), ids=ROW_WISE.keys())
def test_real_tokens_route_as_if_padding_were_not_there(rule: RoutingRule) -> None:
    logits, ids = torch.randn(2, 5, NUM_EXPERTS), torch.arange(10).view(2, 5)
    inputs = {"token_ids": ids} if rule.selection.kind == "hash" else {}
    masked = routed(logits, rule, token_mask=MASK, **inputs)
    inputs = {name: values[MASK] for name, values in inputs.items()}
    alone = routed(logits[MASK], rule, **inputs)
    assert masked.expert_index[MASK.flatten()].equal(alone.expert_index)
    assert masked.weights[MASK.flatten()].equal(alone.weights)


@every_rule
@both_modes
def test_a_fully_masked_batch_is_valid(rule: RoutingRule, training: bool) -> None:
    logits = torch.full((2, 5, NUM_EXPERTS), float("nan"))
    routing = routed(logits, rule, training=training, generator=1, token_mask=torch.zeros(10, dtype=torch.bool))
    assert not routing.load.any() and not routing.weights.any() and routing.real_tokens.item() == 0
    assert routing.edges().token.numel() == 0


@every_rule
def test_a_mask_without_padding_is_no_mask(rule: RoutingRule) -> None:
    logits = torch.randn(2, 5, NUM_EXPERTS)
    ours = routed(logits, rule, token_mask=torch.ones(2, 5, dtype=torch.bool))
    expected = routed(logits, rule)
    assert ours.expert_index.equal(expected.expert_index) and ours.weights.equal(expected.weights)
