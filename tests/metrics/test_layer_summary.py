"""The summary holds each scalar under its own name, and JSON takes it."""

import json
import math

import pytest
import torch

import moegate
from moegate import metrics


def test_each_value_is_the_metric_of_its_name() -> None:
    routing = moegate.route(torch.randn(40, 6), moegate.recipes.gshard(), token_mask=torch.rand(40) < 0.7)
    values = metrics.summary(routing)
    assert {"max_violation", "cv", "gini", "effective_experts", "dead_fraction", "drop_rate", "margin"} <= set(values)
    for name, value in values.items():
        assert type(value) is float and math.isfinite(value)
        assert value == getattr(metrics, name)(routing)
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize(
    ("tokens", "experts", "masked", "used"),
    [(0, 4, False, 0.0), (5, 4, True, 0.0), (5, 1, False, 1.0), (0, 1, False, 0.0), (1, 2, False, 0.5)],
)
def test_no_crash_at_the_edges(tokens: int, experts: int, masked: bool, used: float) -> None:
    mask = torch.zeros(tokens, dtype=torch.bool) if masked else None
    rule = moegate.RoutingRule(moegate.selection.TopK(1))
    values = metrics.summary(moegate.route(torch.randn(tokens, experts), rule, token_mask=mask))
    assert all(type(value) is float for value in values.values())
    assert values["used_fraction"] == used


@pytest.mark.parametrize("name", moegate.recipes.names())
def test_every_family_of_router_can_be_summarised(name: str) -> None:
    rule = moegate.recipes.get(name)()
    logits = torch.randn(3, 16, 64)
    values = metrics.summary(moegate.route(logits, rule, token_ids=torch.arange(48).reshape(3, 16)))
    assert 0 < values["used_fraction"] <= 1
    assert 1 <= values["effective_experts"] <= 64 + 1e-9
