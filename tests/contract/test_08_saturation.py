"""Rule 8: with no bias and a monotone score, selection is on the logits, so saturated scores still rank."""

import hostile
import oracle
import pytest
import torch
from hypothesis import given
from torch import Tensor

import moegate
from moegate.rule import RoutingRule
from moegate.scoring import SCORES

MONOTONE = sorted(kind for kind, score in SCORES.items() if score.monotone)


@pytest.mark.parametrize("kind", MONOTONE)
@hostile.thorough
@given(logits=hostile.logits(sizes=(8, 31, 100), kinds=("saturated", "sunken", "plain")))
def test_saturated_scores_rank_as_their_logits(kind: str, logits: Tensor) -> None:
    routing = moegate.route(logits, RoutingRule(moegate.selection.TopK(5), score=SCORES[kind]()))
    assert routing.expert_index.tolist() == oracle.top_k(oracle.widened(logits), 5)


@pytest.mark.parametrize("offset", [14.0, 40.0, -40.0, -100.0])
def test_sigmoids_that_are_all_equal_still_rank_as_their_logits(offset: float) -> None:
    """With a mean logit of 14 the float32 sigmoids of most experts are equal, and a sort of them goes by index."""
    logits = torch.randn(200, 64) + offset
    rule = RoutingRule(moegate.selection.TopK(8), score=moegate.scoring.Sigmoid())
    expected = oracle.top_k(logits.numpy(), 8)
    assert moegate.route(logits, rule).expert_index.tolist() == expected
    by_scores = moegate.route(logits, rule.replace(rank_by="scores")).expert_index.tolist()
    if abs(offset) in (14.0, 40.0) and offset > 0:
        assert sum(ours != theirs for ours, theirs in zip(by_scores, expected, strict=True)) > 150


def test_the_named_option_ranks_the_scores_as_they_round() -> None:
    logits = torch.tensor([[90.0, 95.0, 100.0]])
    rule = RoutingRule(moegate.selection.TopK(2), score=moegate.scoring.Sigmoid(), rank_by="scores")
    assert moegate.route(logits, rule).expert_index.tolist() == [[0, 1]]
    assert moegate.route(logits, rule.replace(rank_by="logits")).expert_index.tolist() == [[2, 1]]


def test_saturated_groups_rank_by_their_greatest_logit() -> None:
    logits = torch.tensor([[90.0, 91.0, 92.0, 93.0]])
    selection = moegate.selection.GroupedTopK(2, num_groups=2, groups_kept=1, group_score="max")
    rule = RoutingRule(selection, score=moegate.scoring.Sigmoid())
    assert moegate.route(logits, rule).expert_index.tolist() == [[3, 2]]


@hostile.thorough
@given(logits=hostile.logits(sizes=(8,), kinds=("saturated", "sunken"), dtypes=(torch.float32,)))
def test_top_p_and_entropy_ladders_order_by_logits_too(logits: Tensor) -> None:
    ranked = oracle.top_k(oracle.widened(logits), 8)
    for selection in (
        moegate.selection.TopP(1.0),
        moegate.selection.EntropyK(thresholds=(0.1,), counts=(8, 8)),
        moegate.selection.Threshold(-1.0),
    ):
        index = moegate.route(logits, RoutingRule(selection, score=moegate.scoring.Sigmoid())).expert_index.tolist()
        for ours, expected in zip(index, ranked, strict=True):
            chosen = [expert for expert in ours if expert >= 0]
            assert chosen and chosen == expected[: len(chosen)]
