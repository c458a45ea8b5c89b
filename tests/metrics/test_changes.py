"""Churn and agreement against Python sets."""

import math
from dataclasses import replace

import pytest
import torch

import moegate
from moegate import metrics
from moegate.records import Routing

RULE = moegate.recipes.mixtral(top_k=3)


def sets(routing: Routing) -> list[set[int]]:
    return [{expert for expert in row if expert >= 0} for row in routing.selected_index.tolist()]


def test_equal_python_sets() -> None:
    logits = torch.randn(60, 8)
    masks = [torch.rand(60) < 0.8 for _ in range(2)]
    before = moegate.route(logits, RULE, token_mask=masks[0])
    after = moegate.route(logits + 0.5 * torch.randn(60, 8), RULE, token_mask=masks[1])
    pairs = [
        (one, other)
        for one, other, both in zip(sets(before), sets(after), (masks[0] & masks[1]).tolist(), strict=True)
        if both
    ]
    expected = [1 - len(one & other) / 3 for one, other in pairs]
    assert 0.1 < metrics.churn(before, after) < 0.9
    assert metrics.churn(before, after) == pytest.approx(sum(expected) / len(expected))
    assert metrics.agreement(before, after) == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert metrics.churn(after, before) == metrics.churn(before, after)


def test_order_does_not_matter_and_neither_do_weights() -> None:
    before = moegate.route(torch.randn(10, 8), RULE)
    flipped = replace(before, selected_index=before.selected_index.flip(1), weights=before.weights * 0)
    assert metrics.churn(before, flipped) == 0.0
    assert metrics.agreement(before, flipped) == 1.0


def test_disjoint_choices_are_all_churn() -> None:
    logits = torch.randn(10, 8).abs()
    after = moegate.route(-logits, RULE)
    before = moegate.route(logits, RULE)
    assert metrics.churn(before, after) == 1.0
    assert metrics.agreement(before, after) == 0.0


def test_a_mask_on_one_side_counts() -> None:
    logits = torch.randn(4, 8)
    before = moegate.route(logits, RULE)
    changed = logits.clone()
    changed[2:] *= -1
    after = moegate.route(changed, RULE, token_mask=torch.tensor([True, True, False, False]))
    assert metrics.agreement(before, after) == metrics.agreement(after, before) == 1.0


def test_sets_of_different_sizes() -> None:
    routing = moegate.route(torch.randn(3, 8), RULE)
    one = replace(routing, selected_index=torch.tensor([[0, 1, 2], [0, -1, -1], [-1, -1, -1]]))
    other = replace(routing, selected_index=torch.tensor([[0, 1], [0, 1], [-1, -1]]))
    assert metrics.churn(one, other) == pytest.approx((1 / 3 + 1 / 2) / 2)  # the last token selects nothing twice
    assert metrics.agreement(one, other) == pytest.approx(1 / 3)


def test_other_tokens_or_experts_are_refused() -> None:
    routing = moegate.route(torch.randn(3, 8), RULE)
    for shape in ((4, 8), (3, 7)):
        with pytest.raises(ValueError, match="3 tokens over 8 experts"):
            metrics.churn(routing, moegate.route(torch.randn(*shape), RULE))


def test_without_tokens_they_are_nan() -> None:
    routing = moegate.route(torch.randn(0, 8), RULE)
    assert math.isnan(metrics.churn(routing, routing)) and math.isnan(metrics.agreement(routing, routing))
