"""Top-k: sizes, errors, and the case of the article."""

import pytest
import torch

import moegate
from moegate.selection import TopK


def test_the_slots_are_ordered_best_first() -> None:
    index = moegate.route(torch.tensor([[0.1, 0.7, -1.0, 0.7]]), moegate.RoutingRule(TopK(4))).expert_index
    assert index.tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize("num_experts", [1, 2, 7, 64, 2048])
def test_all_experts_may_be_chosen(num_experts: int) -> None:
    logits = torch.randn(3, num_experts)
    index = moegate.route(logits, moegate.RoutingRule(TopK(num_experts))).expert_index
    assert index.sort(dim=-1).values.tolist() == [list(range(num_experts))] * 3
    assert bool((logits.gather(1, index).diff(dim=-1) <= 0).all())


def test_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"top_k=9 exceeds the 8 experts: choose top_k from 1 to 8"):
        moegate.route(torch.randn(2, 8), moegate.RoutingRule(TopK(9)))


@pytest.mark.parametrize(("top_k", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_k_that_is_no_count(top_k: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="top_k must be"):
        TopK(top_k)
