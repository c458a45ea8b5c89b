"""Rule 5: K distinct valid ids for every real token, whatever the values; and NaN is never hidden."""

import hostile
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routers import FIXED_K, NUM_EXPERTS, SPARSE, routed
from torch import Tensor

from moegate.rule import RoutingRule

logits_of_16 = hostile.logits(sizes=(NUM_EXPERTS,))


def distinct(index_TK: Tensor) -> bool:
    rows = [[expert for expert in row if expert >= 0] for row in index_TK.tolist()]
    return all(len(row) == len(set(row)) for row in rows)


@pytest.mark.parametrize("rule", FIXED_K.values(), ids=FIXED_K.keys())
@hostile.brief
@given(logits=logits_of_16, training=st.booleans())
def test_no_slot_is_empty(rule: RoutingRule, logits: Tensor, training: bool) -> None:
    routing = routed(logits, rule, training=training, generator=1)
    assert bool((routing.expert_index >= 0).all()) and bool((routing.selected_index >= 0).all())
    assert routing.selected_index.shape == (logits.shape[0], rule.selection.top_k)


@pytest.mark.parametrize("rule", SPARSE.values(), ids=SPARSE.keys())
@hostile.brief
@given(logits=logits_of_16, training=st.booleans(), biased=st.booleans())
def test_ids_are_distinct_and_in_range(rule: RoutingRule, logits: Tensor, training: bool, biased: bool) -> None:
    bias = torch.linspace(-1, 1, NUM_EXPERTS) if biased else None
    routing = routed(logits, rule, training=training, generator=1, bias=bias)
    num_experts = rule.num_experts(NUM_EXPERTS)
    for index in (routing.expert_index, routing.selected_index):
        assert index.dtype == torch.int64
        assert index.numel() == 0 or -1 <= int(index.min()) <= int(index.max()) < num_experts
        assert distinct(index)
    assert not routing.weights[routing.expert_index < 0].any()
    assert routing.load.tolist() == [int((routing.expert_index == expert).sum()) for expert in range(num_experts)]


@pytest.mark.parametrize("rule", SPARSE.values(), ids=SPARSE.keys())
@pytest.mark.parametrize("training", [False, True])
def test_a_nan_logit_shows_in_every_weight_of_its_token(rule: RoutingRule, training: bool) -> None:
    logits = torch.randn(12, NUM_EXPERTS)
    logits[3, 5] = float("nan")
    routing = routed(logits, rule, training=training, generator=1)
    given_out = routing.expert_index >= 0
    assert bool(routing.weights[3][given_out[3]].isnan().all())
    others = torch.arange(12) != 3
    assert not routing.weights[others].isnan().any()


@pytest.mark.parametrize("rule", FIXED_K.values(), ids=FIXED_K.keys())
def test_a_nan_expert_is_chosen_last(rule: RoutingRule) -> None:
    logits = torch.full((1, NUM_EXPERTS), float("-inf"))
    logits[0, 0] = float("nan")
    assert 0 not in routed(logits, rule).expert_index.tolist()[0]
