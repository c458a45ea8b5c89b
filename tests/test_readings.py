"""The dense values behind a routing: computed when they are read, with the gradients of when the routing was made."""

import copy
import pickle

import pytest
import torch

import moegate
from moegate.readings import DeferredReadings


def test_nothing_is_computed_before_it_is_read() -> None:
    routing = moegate.route(torch.randn(5, 8), moegate.recipes.deepseek_v3(top_k=2, num_groups=2, groups_kept=1))
    assert isinstance(routing.readings, DeferredReadings)
    assert "scores" not in vars(routing.readings)
    torch.testing.assert_close(routing.scores, torch.sigmoid(routing.logits))
    assert routing.scores is routing.scores


def test_what_is_read_without_gradients_first_still_has_them() -> None:
    logits = torch.randn(5, 8, requires_grad=True)
    routing = moegate.route(logits, moegate.recipes.mixtral())
    with torch.no_grad():
        assert routing.scores.requires_grad
        assert routing.logits.requires_grad
    moegate.balance.losses.load_balance(routing).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_what_was_made_without_gradients_has_none() -> None:
    logits = torch.randn(5, 8, requires_grad=True)
    with torch.no_grad():
        routing = moegate.route(logits, moegate.recipes.mixtral())
    assert not routing.scores.requires_grad
    assert not routing.probabilities.requires_grad


def test_a_detached_routing_keeps_no_graph() -> None:
    logits = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    routing = moegate.route(logits, moegate.recipes.mixtral())
    attached = routing.scores
    detached = routing.detach()
    assert not detached.scores.requires_grad
    assert not detached.logits.requires_grad
    assert detached.logits.dtype == torch.float32
    assert detached.scores.equal(attached.detach())
    assert attached.requires_grad


def test_masked_rows_read_zero_whatever_they_hold() -> None:
    logits = torch.full((2, 4), float("nan"), dtype=torch.bfloat16)
    logits[0] = 1.0
    mask = torch.tensor([True, False])
    routing = moegate.route(logits, moegate.recipes.mixtral(), token_mask=mask)
    assert routing.logits.tolist() == [[1.0] * 4, [0.0] * 4]
    assert routing.probabilities[1].tolist() == [0.0] * 4


def test_on_another_device() -> None:
    routing = moegate.route(torch.randn(5, 8), moegate.recipes.mixtral())
    assert routing.to("cpu").scores.equal(routing.scores)
    assert routing.to("meta").scores.is_meta


def test_a_later_bias_does_not_show() -> None:
    logits, bias = torch.randn(4, 8), torch.zeros(8)
    routing = moegate.route(logits, moegate.recipes.deepseek_v3(2, num_groups=1, groups_kept=1), bias=bias)
    bias += torch.arange(8.0)  # as a balancer does
    torch.testing.assert_close(routing.selection_scores, logits.sigmoid())
    assert torch.equal(routing.ranking.argmax(dim=-1), routing.expert_index[:, 0])


@pytest.mark.parametrize("name", ["logits", "scores", "shares", "selection_scores", "ranking", "probabilities"])
def test_logits_that_were_changed_in_place_are_not_read(name: str) -> None:
    logits = torch.randn(4, 8)
    routing = moegate.route(logits, moegate.RoutingRule(moegate.selection.TopK(2), score=moegate.scoring.Identity()))
    logits *= 2
    with pytest.raises(RuntimeError, match=r"changed in place after route\(\).*logits\.clone\(\)"):
        getattr(routing, name)


def test_copies_of_changed_logits_are_not_read_either() -> None:
    logits = torch.randn(4, 8)
    routing = moegate.route(logits, moegate.recipes.mixtral())
    logits *= 2
    for copied in (copy.deepcopy(routing), pickle.loads(pickle.dumps(routing)), routing.detach(), routing.to("cpu")):
        assert copied.expert_index.equal(routing.expert_index)
        with pytest.raises(RuntimeError, match="changed in place"):
            _ = copied.scores


@pytest.mark.parametrize("name", ["logits", "ranking"])
def test_logits_that_were_read_are_still_those_that_were_routed(name: str) -> None:
    logits = torch.randn(4, 8)
    routing = moegate.route(logits, moegate.recipes.mixtral())
    assert getattr(routing, name).equal(logits)
    logits *= 2
    with pytest.raises(RuntimeError, match="changed in place"):
        getattr(routing, name)


def test_what_was_read_before_the_logits_changed_stays() -> None:
    logits = torch.randn(4, 8)
    routing = moegate.route(logits, moegate.recipes.mixtral())
    wanted = routing.scores.clone()
    logits *= 2
    assert torch.equal(routing.scores, wanted)


def test_a_copy_may_be_read() -> None:
    logits = torch.randn(4, 8)
    logits *= 2  # a tensor's count of changes isn't copied with it
    routing = moegate.route(logits, moegate.recipes.mixtral())
    for copied in (copy.deepcopy(routing), pickle.loads(pickle.dumps(routing)), routing.detach()):
        torch.testing.assert_close(copied.scores, routing.scores)
