"""Thresholds: the experts above one, and no others."""

import pytest
import torch

import moegate
from moegate.scoring import ReLU, Sigmoid
from moegate.selection import Threshold


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
@pytest.mark.parametrize(("min_k", "max_k"), [(0, None), (1, None), (2, 4), (0, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_against_brute_force(threshold: float, min_k: int, max_k: int | None, biased: bool) -> None:
    logits = torch.randn(100, 8) * 2
    bias = torch.linspace(-0.3, 0.3, 8) if biased else None
    rule = moegate.RoutingRule(Threshold(threshold, min_k=min_k, max_k=max_k), score=Sigmoid())
    routing = moegate.route(logits, rule, bias=bias)
    values = routing.scores if bias is None else routing.scores + bias
    for row, ours in zip(values.tolist(), routing.expert_index.tolist(), strict=True):
        order = sorted(range(8), key=lambda expert: (-row[expert], expert))[:max_k]
        expected = [expert for slot, expert in enumerate(order) if row[expert] > threshold or slot < min_k]
        assert [expert for expert in ours if expert >= 0] == expected


def test_relu_routing_takes_every_positive_logit() -> None:
    logits = torch.tensor([[1.0, -1.0, 2.0, 0.0], [-1.0, -2.0, -3.0, -0.0]], requires_grad=True)
    routing = moegate.route(logits, moegate.recipes.relu())
    assert routing.expert_index.tolist() == [[2, 0, -1, -1], [-1] * 4]
    assert routing.weights.tolist() == [[2.0, 1.0, 0.0, 0.0], [0.0] * 4]
    (grad,) = torch.autograd.grad(routing.weights.sum(), logits)
    assert grad.tolist() == [[1.0, 0.0, 1.0, 0.0], [0.0] * 4]


def test_a_threshold_for_each_expert_is_a_negative_bias() -> None:
    thresholds = torch.tensor([0.1, 0.9, 0.5])
    rule = moegate.RoutingRule(Threshold(0.0, min_k=0), score=Sigmoid())
    routing = moegate.route(torch.tensor([[0.0, 0.0, 0.1]]), rule, bias=-thresholds)
    assert sorted(routing.expert_index.tolist()[0]) == [-1, 0, 2]


def test_nan_is_above_nothing() -> None:
    rule = moegate.RoutingRule(Threshold(0.0, min_k=0), score=ReLU())
    assert moegate.route(torch.tensor([[float("nan"), 1.0]]), rule).expert_index.tolist() == [[1, -1]]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"min_k": -1}, ValueError, "min_k must be at least 0, got -1"),
        ({"min_k": 1.5}, TypeError, "min_k must be an integer"),
        ({"min_k": 3, "max_k": 2}, ValueError, "max_k=2 is less than min_k=3"),
        ({"max_k": 0}, ValueError, "max_k must be at least 1"),
        ({"threshold": "high"}, TypeError, "threshold must be a number, got 'high'"),
        ({"threshold": float("nan")}, ValueError, "threshold must be a finite number, got nan"),
    ],
)
def test_bad_values(values: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Threshold(**values)  # type: ignore[arg-type]


def test_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match="top_k=5 exceeds the 4 experts"):
        moegate.route(torch.randn(1, 4), moegate.RoutingRule(Threshold(min_k=5)))
