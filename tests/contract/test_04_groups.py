"""Rule 4: dropped groups are excluded, never multiplied by zero, and two equal maxima count twice."""

import hostile
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moegate
from moegate.rule import RoutingRule
from moegate.scoring import Identity, Sigmoid, Softmax
from moegate.selection import GroupedTopK


@st.composite
def groupings(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """``(experts, groups, groups kept, k)`` that go together, with two experts or more a group."""
    num_groups, size = draw(st.sampled_from([1, 2, 3, 4, 7])), draw(st.sampled_from([2, 3, 4, 8]))
    kept = draw(st.integers(1, num_groups))
    return num_groups * size, num_groups, kept, draw(st.sampled_from(sorted({1, 2, kept * size})))


@pytest.mark.parametrize("how", ["max", "top2_sum"])
@pytest.mark.parametrize("score", [Sigmoid(), Softmax(), Identity()], ids=lambda score: score.kind)
@hostile.thorough
@given(data=st.data(), grouping=groupings(), biased=st.booleans())
def test_equals_brute_force(
    how: str, score: moegate.scoring.Score, data: st.DataObject, grouping: tuple[int, int, int, int], biased: bool
) -> None:
    num_experts, num_groups, kept, k = grouping
    logits = data.draw(hostile.logits(sizes=(num_experts,)))
    bias = torch.linspace(-3.0, 3.0, num_experts) if biased else None
    rule = RoutingRule(GroupedTopK(k, num_groups=num_groups, groups_kept=kept, group_score=how), score=score)
    routing = moegate.route(logits, rule, bias=bias)
    scores = routing.scores if bias is None else routing.scores + bias
    order = routing.logits if bias is None else scores
    judged = order if how == "max" else scores
    # In the precision of the scores, so that the sum of two is rounded once, as in the library.
    expected = oracle.grouped_top_k(order.numpy(), judged.numpy(), k, num_groups, kept, how)
    assert routing.expert_index.tolist() == expected


@pytest.mark.parametrize("how", ["max", "top2_sum"])
def test_negative_scores_do_not_lose_to_masked_ones(how: str) -> None:
    """With all scores plus biases below zero, a mask by multiplication would pick the dropped groups."""
    rule = RoutingRule(GroupedTopK(3, num_groups=4, groups_kept=1, group_score=how), score=Sigmoid())
    bias = torch.tensor([-9.0] * 4 + [-5.0] * 4 + [-9.0] * 8)
    routing = moegate.route(torch.randn(50, 16), rule, bias=bias)
    assert bool((routing.expert_index // 4 == 1).all())
    assert bool((routing.weights > 0).all())


def test_minus_infinity_in_a_kept_group_does_not_lose_to_a_dropped_group() -> None:
    logits = torch.tensor([[9.0, float("-inf"), 1.0, 1.0]])
    rule = RoutingRule(GroupedTopK(2, num_groups=2, groups_kept=1, group_score="max"), score=Sigmoid())
    assert moegate.route(logits, rule).expert_index.tolist() == [[0, 1]]


def test_two_equal_maxima_count_twice() -> None:
    logits = torch.tensor([[2.0, 2.0, 0.0, 3.0, 0.5, 0.0]])
    rule = RoutingRule(GroupedTopK(1, num_groups=2, groups_kept=1), score=Identity())
    assert moegate.route(logits, rule).expert_index.tolist() == [[0]]


def test_a_nan_does_not_choose_its_group() -> None:
    logits = torch.tensor([[float("nan"), -5.0, -1.0, -1.0]])
    for how in ("max", "top2_sum"):
        rule = RoutingRule(GroupedTopK(2, num_groups=2, groups_kept=1, group_score=how), score=Identity())
        assert moegate.route(logits, rule).expert_index.tolist() == [[2, 3]]


@hostile.thorough
@given(logits=hostile.logits(sizes=(16,), kinds=hostile.FINITE))
def test_one_group_kept_of_one_is_plain_top_k(logits: Tensor) -> None:
    grouped = RoutingRule(GroupedTopK(3, num_groups=1, groups_kept=1), score=Sigmoid())
    plain = RoutingRule(moegate.selection.TopK(3), score=Sigmoid())
    ours, theirs = moegate.route(logits, grouped), moegate.route(logits, plain)
    assert ours.expert_index.equal(theirs.expert_index) and ours.weights.equal(theirs.weights)
