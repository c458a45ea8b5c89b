"""Grouped top-k: the published sizes, and what is refused. Brute force is in the tests of the contract (rule 4)."""

from dataclasses import replace
from math import isnan

import pytest
import torch

import moegate
from moegate.selection import GroupedTopK


@pytest.mark.parametrize(
    ("rule", "num_experts", "groups"),
    [(moegate.recipes.deepseek_v3(), 256, 4), (moegate.recipes.deepseek_v2(), 160, 3)],
    ids=["deepseek_v3", "deepseek_v2"],
)
def test_a_token_travels_to_few_groups(rule: moegate.RoutingRule, num_experts: int, groups: int) -> None:
    index = moegate.route(torch.randn(200, num_experts), rule).expert_index
    visited = [len({expert // (num_experts // 8) for expert in row}) for row in index.tolist()]
    assert max(visited) <= groups
    assert max(visited) == groups  # random logits do reach the limit


def test_the_reference_code_of_deepseek_v3_agrees() -> None:
    """Its published selection, written out: sums of two, a mask, and a plain top-k."""
    logits, bias = torch.randn(100, 32), torch.randn(32) * 0.01
    scores = logits.sigmoid() + bias
    group_scores = scores.view(100, 8, 4).topk(2, dim=-1).values.sum(dim=-1)
    kept = torch.zeros(100, 8).scatter(1, group_scores.topk(4, dim=-1).indices, 1.0).bool()
    masked = scores.masked_fill(~kept.repeat_interleave(4, dim=1), float("-inf"))
    expected = masked.topk(6, dim=-1).indices
    index = moegate.route(logits, moegate.recipes.deepseek_v3(6), bias=bias).expert_index
    assert index.equal(expected)


@pytest.mark.parametrize("dropped_score", [0.0, -0.25, 0.5])
def test_dropped_groups_with_a_score_of_their_own(dropped_score: float) -> None:
    rule = moegate.RoutingRule(
        GroupedTopK(5, num_groups=4, groups_kept=2, dropped_score=dropped_score), score=moegate.scoring.Sigmoid()
    )
    logits, bias = torch.randn(200, 8), torch.randn(8)
    logits[3, 2], logits[4, :] = float("nan"), 0.0
    routing = moegate.route(logits, rule, bias=bias)
    inside = 0
    for row, chosen, weights in zip(logits, routing.expert_index.tolist(), routing.weights, strict=True):
        scores = (row.sigmoid() + bias).tolist()
        scores = [float("-inf") if isnan(score) else score for score in scores]
        groups = sorted(range(4), key=lambda group: (-(scores[2 * group] + scores[2 * group + 1]), group))
        values = [
            dropped_score if expert // 2 in groups[2:] and score > float("-inf") else score
            for expert, score in enumerate(scores)
        ]
        assert chosen == sorted(range(8), key=lambda expert: (-values[expert], expert))[:5]
        inside += all(expert // 2 in groups[:2] for expert in chosen)
        if not row.isnan().any():
            torch.testing.assert_close(weights, row.sigmoid()[chosen], rtol=1e-6, atol=0.0)
    assert inside < 200
    assert moegate.RoutingRule.from_json(rule.to_json()) == rule


def test_a_dropped_score_lets_more_experts_be_chosen_than_there_are_in_the_kept_groups() -> None:
    rule = moegate.RoutingRule(GroupedTopK(5, num_groups=4, groups_kept=2, dropped_score=0.0))
    assert moegate.route(torch.zeros(1, 8), rule).expert_index.tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="top_k=9 exceeds the 8 experts"):
        moegate.route(torch.zeros(1, 8), rule.replace(selection=replace(rule.selection, top_k=9)))
    with pytest.raises(TypeError, match="dropped_score"):
        GroupedTopK(5, dropped_score="0")  # type: ignore[arg-type]
    assert moegate.fusion.match(rule).reason == "the kernel excludes the experts of dropped groups"


@pytest.mark.parametrize(
    ("selection", "num_experts", "message"),
    [
        (GroupedTopK(2, num_groups=3, groups_kept=1), 8, r"8 experts do not divide into num_groups=3.*1, 2, 4, 8"),
        (GroupedTopK(2, num_groups=8, groups_kept=4), 8, r"top2_sum' needs groups of at least 2"),
        (GroupedTopK(9, num_groups=4, groups_kept=2), 16, r"top_k=9 exceeds the 8 experts left in 2 kept groups of 4"),
    ],
)
def test_groups_that_do_not_fit(selection: GroupedTopK, num_experts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moegate.route(torch.randn(2, num_experts), moegate.RoutingRule(selection))


def test_more_groups_kept_than_there_are() -> None:
    with pytest.raises(ValueError, match="groups_kept=5 exceeds num_groups=4"):
        GroupedTopK(2, num_groups=4, groups_kept=5)


def test_an_unknown_group_score_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"top2sum'. Did you mean 'top2_sum'"):
        GroupedTopK(2, group_score="top2sum")


def test_groups_of_one_expert_go_by_their_maximum() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    rule = moegate.RoutingRule(GroupedTopK(2, num_groups=4, groups_kept=2, group_score="max"))
    assert moegate.route(logits, rule).expert_index.tolist() == [[1, 2]]
