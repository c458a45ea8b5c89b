"""Rule 2: descending by score, ties to the lowest index, for experts and for groups; -0.0 equals +0.0."""

import hostile
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moegate
from moegate.rule import RoutingRule
from moegate.scoring import SCORES


@pytest.mark.parametrize("kind", sorted(SCORES))
@hostile.thorough
@given(data=st.data(), logits=hostile.logits())
def test_top_k_follows_the_order(kind: str, data: st.DataObject, logits: Tensor) -> None:
    k = data.draw(hostile.top_k_for(logits.shape[1]))
    routing = moegate.route(logits, RoutingRule(moegate.selection.TopK(k), score=SCORES[kind]()))
    assert routing.expert_index.tolist() == oracle.top_k(oracle.widened(logits), k)


@pytest.mark.parametrize("kind", sorted(SCORES))
@hostile.thorough
@given(data=st.data(), logits=hostile.logits())
def test_ranking_by_scores_follows_the_rounded_scores(kind: str, data: st.DataObject, logits: Tensor) -> None:
    k = data.draw(hostile.top_k_for(logits.shape[1]))
    rule = RoutingRule(moegate.selection.TopK(k), score=SCORES[kind](), rank_by="scores")
    routing = moegate.route(logits, rule)
    seen = routing.logits if kind == "softmax_selected" else routing.scores
    assert routing.expert_index.tolist() == oracle.top_k(oracle.widened(seen), k)


@pytest.mark.parametrize("dtype", hostile.DTYPES)
def test_both_zeros_are_one_value(dtype: torch.dtype) -> None:
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, 0.0, -0.0]], dtype=dtype)
    for score in SCORES.values():
        rule = RoutingRule(moegate.selection.TopK(4), score=score())
        assert moegate.route(logits, rule).expert_index.tolist() == [[0, 1, 2, 3]] * 2
        biased = moegate.route(logits, rule, bias=torch.tensor([0.0, -0.0, 0.0, -0.0]))
        assert biased.expert_index.tolist() == [[0, 1, 2, 3]] * 2


@hostile.thorough
@given(
    logits=hostile.logits(sizes=(8, 12), kinds=("ties", "zeros", "equal", "broken", "infinite")),
    how=st.sampled_from(["max", "top2_sum"]),
    kept=st.integers(1, 4),
)
def test_tied_groups_go_to_the_lowest(logits: Tensor, how: str, kept: int) -> None:
    selection = moegate.selection.GroupedTopK(2, num_groups=4, groups_kept=kept, group_score=how)
    routing = moegate.route(logits, RoutingRule(selection, score=moegate.scoring.Identity()))
    values = oracle.widened(logits)
    assert routing.expert_index.tolist() == oracle.grouped_top_k(values, values, 2, 4, kept, how)
