"""The sequence-level loss against a loop over sequences."""

import pytest
import torch

import moegate
from moegate.balance.losses import load_balance, sequence_load_balance

RULE = moegate.recipes.mixtral(top_k=2)


@pytest.mark.parametrize("masked", [False, True])
def test_is_the_mean_over_sequences(masked: bool) -> None:
    logits = torch.randn(5, 9, 4)
    mask = torch.rand(5, 9) < 0.6 if masked else torch.ones(5, 9, dtype=torch.bool)
    if masked:
        mask[2] = False  # no real token: left out of the mean
    routing = moegate.route(logits, RULE, token_mask=mask)
    each = [load_balance(moegate.route(row, RULE, token_mask=real)) for row, real in zip(logits, mask, strict=True)]
    expected = torch.stack([loss for loss, real in zip(each, mask, strict=True) if real.any()]).mean()
    torch.testing.assert_close(sequence_load_balance(routing), expected)


def test_flat_tokens_take_a_length() -> None:
    logits = torch.randn(6, 5, 4)
    batched = moegate.route(logits, RULE)
    flat = moegate.route(logits.reshape(30, 4), RULE)
    assert sequence_load_balance(flat, 5) == sequence_load_balance(batched)
    torch.testing.assert_close(sequence_load_balance(flat, 30), load_balance(flat))


def test_specialisation_by_sequence_balances_the_batch_but_no_sequence() -> None:
    logits = torch.full((4, 8, 4), -60.0)
    for expert in range(4):
        logits[expert, :, expert] = 0.0
    routing = moegate.route(logits, moegate.recipes.switch())
    assert load_balance(routing).item() == pytest.approx(1.0)
    assert sequence_load_balance(routing).item() == pytest.approx(4.0)


def test_equal_scores_read_one_whatever_is_selected() -> None:
    routing = moegate.route(torch.zeros(3, 7, 8), RULE)  # ties: experts 0 and 1 take everything
    assert sequence_load_balance(routing).item() == pytest.approx(1.0)


@pytest.mark.parametrize("length", [0, -5, 4, 31])
def test_a_length_that_does_not_divide_is_refused(length: int) -> None:
    routing = moegate.route(torch.randn(30, 4), RULE)
    with pytest.raises(ValueError, match="into whole sequences"):
        sequence_load_balance(routing, length)


def test_an_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say how long a sequence is: pass sequence_length"):
        sequence_load_balance(moegate.route(torch.randn(30, 4), RULE))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_no_tokens_read_zero(shape: tuple[int, int]) -> None:
    logits = torch.zeros(*shape, 4, requires_grad=True)
    loss = sequence_load_balance(moegate.route(logits, RULE))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None


def test_gradient() -> None:
    mask = torch.rand(2, 4) < 0.7

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return sequence_load_balance(moegate.route(logits, RULE, token_mask=mask))

    assert torch.autograd.gradcheck(loss, torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True))
