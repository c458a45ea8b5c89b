"""Top-p: the fewest best experts that cover p."""

import numpy as np
import pytest
import torch

import moegate
from moegate.scoring import Sigmoid, Softmax
from moegate.selection import TopP


def chosen_counts(index: torch.Tensor) -> list[int]:
    return (index >= 0).sum(dim=-1).tolist()


@pytest.mark.parametrize("score", [Softmax(), Sigmoid()], ids=lambda score: score.kind)
@pytest.mark.parametrize("p", [0.05, 0.4, 0.9, 0.999])
@pytest.mark.parametrize("max_k", [None, 3])
def test_against_brute_force(score: moegate.scoring.Score, p: float, max_k: int | None) -> None:
    logits = torch.randn(200, 16, dtype=torch.float64) * 2
    index = moegate.route(logits, moegate.RoutingRule(TopP(p, max_k), score=score)).expert_index
    values = np.exp(logits.numpy()) if score.kind == "softmax" else 1 / (1 + np.exp(-logits.numpy()))
    shares = values / values.sum(axis=1, keepdims=True)
    for row, ours in zip(shares, index.tolist(), strict=True):
        order, covered, expected = np.argsort(-row, kind="stable"), 0.0, []
        for expert in order[:max_k]:
            if covered >= p:
                break
            expected.append(int(expert))
            covered += row[expert]
        assert [expert for expert in ours if expert >= 0] == expected


def test_a_share_of_exactly_p_is_enough() -> None:
    """The sum before the second expert is the first probability itself, to the bit."""
    logits = torch.randn(400, 16) * 2
    greatest = moegate.route(logits, moegate.RoutingRule(TopP(0.5))).probabilities.amax(dim=-1)
    for row, p in zip(logits, greatest.tolist(), strict=True):
        assert chosen_counts(moegate.route(row, moegate.RoutingRule(TopP(p))).expert_index) == [1]


def test_dyadic_shares() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    counts = [
        chosen_counts(moegate.route(logits, moegate.RoutingRule(TopP(p))).expert_index)[0]
        for p in (0.5, 0.51, 0.75, 0.76, 0.875, 1.0)
    ]
    assert counts == [1, 2, 2, 3, 3, 4]


def test_no_distribution_leaves_a_token_without_expert() -> None:
    logits = torch.tensor([[float("nan")] * 4, [float("-inf")] * 4, [-200.0] * 4, [60.0, 0.0, 0.0, 0.0]])
    for score in (Softmax(), Sigmoid(), moegate.scoring.ReLU()):
        index = moegate.route(logits, moegate.RoutingRule(TopP(0.1), score=score)).expert_index
        assert bool((index[:, 0] >= 0).all())


def test_a_bias_orders_and_does_not_count() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    rule = moegate.RoutingRule(TopP(0.65))
    index = moegate.route(logits, rule, bias=torch.tensor([0.0, 0.0, 9.0])).expert_index
    assert index.tolist() == [[2, 0, -1]]


@pytest.mark.parametrize("p", [0.0, 1.5, -0.1, float("nan")])
def test_p_out_of_range(p: float) -> None:
    with pytest.raises(ValueError, match="p must be"):
        TopP(p)


def test_p_that_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"p must be a number, got '0\.5'"):
        TopP("0.5")  # type: ignore[arg-type]


def test_max_k_exceeds_the_experts() -> None:
    with pytest.raises(ValueError, match="top_k=9 exceeds the 4 experts"):
        moegate.route(torch.randn(1, 4), moegate.RoutingRule(TopP(0.5, max_k=9)))
