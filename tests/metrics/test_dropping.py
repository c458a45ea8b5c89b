"""Drop rates by hand, and with a capacity."""

import math

import pytest
import torch

import moegate
from moegate import metrics


def test_by_hand() -> None:
    routing = moegate.route(
        torch.randn(5, 4), moegate.recipes.mixtral(top_k=2), token_mask=torch.tensor([1, 1, 1, 1, 0]).bool()
    )
    kept = routing.expert_index.clone()
    kept[0] = -1  # all of it
    kept[1, 1] = -1  # half of it
    routing = routing.with_assignment(kept, routing.weights)
    assert metrics.drop_rate(routing) == 3 / 8
    assert metrics.fully_dropped_rate(routing) == 1 / 4
    assert metrics.experts_per_token(routing) == 5 / 4


def test_capacity_drops_what_exceeds_it() -> None:
    rule = moegate.RoutingRule(moegate.selection.TopK(1), capacity=moegate.Capacity(1.0))
    routing = moegate.route(torch.tensor([[2.0, 1.0, 0.0, 0.0]]).repeat(32, 1), rule)
    assert metrics.load(routing).tolist() == [32, 0, 0, 0]
    assert metrics.load(routing, dropped=True).tolist() == [8, 0, 0, 0]
    assert metrics.drop_rate(routing) == metrics.fully_dropped_rate(routing) == 0.75


def test_a_token_that_no_expert_picked_is_not_dropped_but_is_unserved() -> None:
    routing = moegate.route(torch.zeros(4, 2), moegate.recipes.mixtral(top_k=2))
    choice = torch.tensor([[0, 1], [0, 1], [0, -1], [-1, -1]])
    routing = moegate.Routing(**(vars(routing) | {"expert_index": choice, "selected_index": choice}))
    assert metrics.drop_rate(routing) == 0.0
    assert metrics.fully_dropped_rate(routing) == 0.25
    assert metrics.experts_per_token(routing) == 1.25


@pytest.mark.parametrize("tokens", [0, 3])
def test_without_real_tokens_rates_are_nan(tokens: int) -> None:
    mask = torch.zeros(tokens, dtype=torch.bool)
    routing = moegate.route(torch.randn(tokens, 4), moegate.recipes.mixtral(top_k=2), token_mask=mask)
    for metric in (metrics.drop_rate, metrics.fully_dropped_rate, metrics.experts_per_token):
        assert math.isnan(metric(routing))
