"""The derivatives of the operators between tokens and rows, of every order.

All of them come from one number, linear in each of the rows, the tokens and the weights:
``L(rows, hidden, weights) = Σ weights[t, k] · <rows[inverse[t, k]], hidden[t]>``. Its derivative by the rows is
``permute(hidden, weights)``, by the tokens ``combine(rows, weights)``, by the weights ``row_dots(rows, hidden)``; and
so the derivative of each of the three is made of the other two. ``combine_backward`` and ``permute_backward`` are two
of them in one pass over the rows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moegate.ops.library import register_autograd

Gradients = tuple[Tensor | None, ...]


class _Ways(NamedTuple):
    """The three derivatives for given places."""

    slot: Tensor
    inverse: Tensor

    def rows(self, hidden_TD: Tensor, weights_TK: Tensor | None) -> Tensor:
        return torch.ops.moegate.permute(hidden_TD, *self, weights_TK)  # type: ignore[no-any-return]

    def tokens(self, rows_RD: Tensor, weights_TK: Tensor | None) -> Tensor:
        return torch.ops.moegate.combine(rows_RD, *self, weights_TK)  # type: ignore[no-any-return]

    def dots(self, rows_RD: Tensor, hidden_TD: Tensor) -> Tensor:
        return torch.ops.moegate.row_dots(rows_RD, hidden_TD, *self)  # type: ignore[no-any-return]


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Of ``permute`` and ``combine``: no more than the gradients that are asked for will read."""
    values, slot_R, inverse_TK, weights_TK = inputs
    of_values, of_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    ctx.save_for_backward(values if of_weights else None, slot_R, inverse_TK, weights_TK if of_values else None)


def _permute_backward(ctx: Any, grad_RD: Tensor) -> Gradients:
    hidden_TD, slot_R, inverse_TK, weights_TK = ctx.saved_tensors
    ways = _Ways(slot_R, inverse_TK)
    of_hidden, _, _, of_weights = ctx.needs_input_grad
    if of_hidden and of_weights:
        both = torch.ops.moegate.permute_backward(grad_RD, hidden_TD, *ways, weights_TK)
        return both[0], None, None, both[1]
    if of_weights:
        return None, None, None, ways.dots(grad_RD, hidden_TD)
    return ways.tokens(grad_RD, weights_TK), None, None, None


def _combine_backward(ctx: Any, grad_TD: Tensor) -> Gradients:
    rows_RD, slot_R, inverse_TK, weights_TK = ctx.saved_tensors
    ways = _Ways(slot_R, inverse_TK)
    of_rows, _, _, of_weights = ctx.needs_input_grad
    if of_rows and of_weights:
        both = torch.ops.moegate.combine_backward(grad_TD, rows_RD, *ways, weights_TK)
        return both[0], None, None, both[1]
    if of_weights:
        return None, None, None, ways.dots(rows_RD, grad_TD)
    return ways.rows(grad_TD, weights_TK), None, None, None


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _row_dots_backward(ctx: Any, grad_TK: Tensor) -> Gradients:
    rows_RD, hidden_TD, slot_R, inverse_TK = ctx.saved_tensors
    ways = _Ways(slot_R, inverse_TK)
    of_rows, of_hidden, _, _ = ctx.needs_input_grad
    return (
        ways.rows(hidden_TD, grad_TK) if of_rows else None,
        ways.tokens(rows_RD, grad_TK) if of_hidden else None,
        None,
        None,
    )


def _combine_backward_backward(ctx: Any, grad_RD: Tensor, grad_TK: Tensor) -> Gradients:
    tokens_TD, rows_RD, slot_R, inverse_TK, weights_TK = ctx.saved_tensors
    ways = _Ways(slot_R, inverse_TK)
    of_tokens, of_rows, _, _, of_weights = ctx.needs_input_grad
    return (
        ways.tokens(grad_RD, weights_TK) + ways.tokens(rows_RD, grad_TK) if of_tokens else None,
        ways.rows(tokens_TD, grad_TK) if of_rows else None,
        None,
        None,
        ways.dots(grad_RD, tokens_TD) if of_weights else None,
    )


def _permute_backward_backward(ctx: Any, grad_TD: Tensor, grad_TK: Tensor) -> Gradients:
    rows_RD, hidden_TD, slot_R, inverse_TK, weights_TK = ctx.saved_tensors
    ways = _Ways(slot_R, inverse_TK)
    of_rows, of_hidden, _, _, of_weights = ctx.needs_input_grad
    return (
        ways.rows(grad_TD, weights_TK) + ways.rows(hidden_TD, grad_TK) if of_rows else None,
        ways.tokens(rows_RD, grad_TK) if of_hidden else None,
        None,
        None,
        ways.dots(rows_RD, grad_TD) if of_weights else None,
    )


def register_derivatives() -> None:
    """Registers the formulas, that of ``permute`` among them; once, on import, when all operators are defined."""
    register_autograd("permute", _permute_backward, _save_linear)
    register_autograd("combine", _combine_backward, _save_linear)
    register_autograd("row_dots", _row_dots_backward, _save_inputs)
    register_autograd("combine_backward", _combine_backward_backward, _save_inputs)
    register_autograd("permute_backward", _permute_backward_backward, _save_inputs)
