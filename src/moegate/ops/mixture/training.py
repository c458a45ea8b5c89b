"""A layer's second half for training, as one operator: nothing of the size of the rows but ``pre`` is kept.

Contract: what ``mixture`` gives, and what its backward needs: the plan, and ``pre [T · K, 2F or F]``, what went into
the activations. The rows of the plan lie at the front of ``slot`` and ``pre``; what lies behind them is -1 in the one
and anything in the other.
"""

from typing import Any

import torch
from torch import Tensor

from moegate.ops.combine import combine
from moegate.ops.grouped_mm import grouped_mm, grouped_outer
from moegate.ops.library import define, implement, register_autograd, register_fake
from moegate.ops.mixture.arguments import check_arguments
from moegate.ops.mixture.training_backward import TRAINED_MIXTURE_BACKWARD
from moegate.ops.mixture.training_reference import Trained, trained_mixture_reference
from moegate.ops.permute import permute

__all__ = ["TRAINED_MIXTURE"]

_Context = Any  # what register_autograd passes has no public type


def _fake(
    hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, up: Tensor, down_EDF: Tensor, activation: int
) -> Trained:
    check_arguments(hidden_TD, index_TK, weights_TK, up, down_EDF, activation)
    num_slots = index_TK.shape[0] * index_TK.shape[1]
    return (
        hidden_TD.new_empty(hidden_TD.shape),
        index_TK.new_empty(num_slots, dtype=torch.int64),
        index_TK.new_empty(index_TK.shape, dtype=torch.int64),
        index_TK.new_empty(up.shape[0], dtype=torch.int64),
        hidden_TD.new_empty(num_slots, up.shape[1]),
    )


define(
    "trained_mixture(Tensor hidden, Tensor index, Tensor weights, Tensor up, Tensor down, int activation)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    trained_mixture_reference,
)
implement("trained_mixture", "moegate.ops.mixture.gpu_operator:trained_mixture")
register_fake("trained_mixture", _fake)
TRAINED_MIXTURE = torch.ops.moegate.trained_mixture.default
"""``(hidden, index, weights, up, down, activation) -> (out, slot, inverse, offsets, pre)``."""


def _save_for_backward(ctx: _Context, inputs: tuple[Any, ...], output: Trained) -> None:
    hidden_TD, _, weights_TK, up, down_EDF, ctx.activation = inputs
    _, slot_R, inverse_TK, offsets_E, pre = output
    ctx.save_for_backward(hidden_TD, weights_TK, slot_R, inverse_TK, offsets_E, pre, up, down_EDF)
    ctx.set_materialize_grads(False)


def _backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_out_TD, _, _, _, grad_pre = grads
    needs_hidden, _, needs_weights, needs_up, needs_down, _ = ctx.needs_input_grad
    found: list[Tensor | None] = [None] * 4
    if grad_out_TD is not None:
        given = TRAINED_MIXTURE_BACKWARD(
            grad_out_TD, *ctx.saved_tensors, ctx.activation, needs_hidden, needs_weights, needs_up or needs_down
        )
        needed = (needs_hidden, needs_weights, needs_up, needs_down)
        found = [grad if wanted else None for grad, wanted in zip(given, needed, strict=True)]
    if grad_pre is not None:  # where the gradient was differentiated
        _add_those_of_pre(ctx, grad_pre, found)
    return found[0], None, found[1], found[2], found[3], None


def _add_those_of_pre(ctx: _Context, grad_pre: Tensor, found: list[Tensor | None]) -> None:
    hidden_TD, _, slot_R, inverse_TK, offsets_E, _, up, _ = ctx.saved_tensors
    if ctx.needs_input_grad[0]:
        found[0] = _sum(found[0], combine(grouped_mm(grad_pre, up.mT, offsets_E), slot_R, inverse_TK))
    if ctx.needs_input_grad[3]:
        found[2] = _sum(found[2], grouped_outer(grad_pre, permute(hidden_TD, slot_R, inverse_TK), offsets_E))


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


register_autograd("trained_mixture", _backward, _save_for_backward)
