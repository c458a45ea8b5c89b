"""The dense values behind a routing: computed when they are read, with the gradients of when the routing was made."""

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
