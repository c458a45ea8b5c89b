"""The gradient of ``moegate::experts``: returned, or added to buffers that the caller keeps."""

from typing import Any

import torch
from torch import Tensor

import moegate.ops.experts.backward  # registers the operators  # noqa: F401
from moegate.ops.grouped_mm import grouped_mm, grouped_outer
from moegate.ops.library import register_autograd

__all__ = ["experts_adding_gradients"]

_Context = Any  # what register_autograd passes has no public type


def _save_for_backward(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows_RD, up, down_EDF, offsets_E, ctx.activation, ctx.keep = inputs
    ctx.save_for_backward(rows_RD, output[1], up, down_EDF, offsets_E)
    ctx.set_materialize_grads(False)


def _backward(ctx: _Context, grad_out_RD: Tensor | None, grad_pre: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError("moegate::experts has no gradient with keep=False: pass keep=True where one is needed.")
    rows_RD, pre, up, down_EDF, offsets_E = ctx.saved_tensors
    needs_rows, needs_up, needs_down = ctx.needs_input_grad[:3]
    grads: list[Tensor | None] = [None, None, None]
    if grad_out_RD is not None:
        found = torch.ops.moegate.experts_backward(
            grad_out_RD, rows_RD, pre, up, down_EDF, offsets_E, ctx.activation, needs_rows, needs_up or needs_down
        )
        grads = [
            grad if needed else None for grad, needed in zip(found, (needs_rows, needs_up, needs_down), strict=True)
        ]
    if grad_pre is not None:  # where the gradient was differentiated
        if needs_rows:
            grads[0] = _sum(grads[0], grouped_mm(grad_pre, up.mT, offsets_E))
        if needs_up:
            grads[1] = _sum(grads[1], grouped_outer(grad_pre, rows_RD, offsets_E))
    return (*grads, None, None, None)


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


register_autograd("experts", _backward, _save_for_backward)


class _AddingGradients(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - the arguments of `experts_adding_gradients`
        ctx: _Context,
        rows_RD: Tensor,
        up: Tensor,
        down_EDF: Tensor,
        offsets_E: Tensor,
        activation: int,
        grad_up: Tensor,
        grad_down_EDF: Tensor,
    ) -> Tensor:
        up, down_EDF = up.to(rows_RD.dtype), down_EDF.to(rows_RD.dtype)
        out_RD: Tensor
        out_RD, pre = torch.ops.moegate.experts(rows_RD, up, down_EDF, offsets_E, activation, True)
        ctx.save_for_backward(rows_RD, pre, up, down_EDF, offsets_E)
        ctx.activation, ctx.buffers = activation, (grad_up, grad_down_EDF)
        return out_RD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, grad_out_RD: Tensor) -> tuple[Tensor | None, ...]:
        needs_rows = ctx.needs_input_grad[0]
        grad_rows_RD = torch.ops.moegate.experts_backward_into(
            grad_out_RD, *ctx.saved_tensors, ctx.activation, needs_rows, *ctx.buffers
        )
        return (grad_rows_RD if needs_rows else None, *[None] * 6)


def experts_adding_gradients(
    rows_RD: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: int,
    buffers: tuple[Tensor, Tensor],
) -> Tensor:
    """The experts, whose backward adds the gradients of the weights to buffers instead of returning them.

    The convention of Megatron-LM's gradient accumulation fusion: a trainer keeps a buffer ``main_grad`` for each
    weight, often in float32 below bfloat16 weights, and the weights' ``.grad`` stays ``None``. It saves the gradient
    tensors and a pass over all weights, and experts without rows cost nothing.

    Args:
        rows_RD: ``[R, D]``, sorted by expert.
        up: ``[E, 2F or F, D]``; converted to the dtype of the rows, as ``down`` is.
        down_EDF: ``[E, D, F]``.
        offsets_E: ``[E]`` int64, the end of each expert's rows.
        activation: its number, as in ``moegate::experts``.
        buffers: ``(grad_up, grad_down)``, contiguous, the shapes of ``up`` and ``down``, the dtype of the rows or
            float32. They change once for every backward, at once and in place.

    Returns:
        ``[R, D]``. It can be differentiated once; under ``torch.compile`` use plain gradients.

    Example:
        >>> rows, up, down = torch.ones(2, 1), torch.ones(1, 1, 1, requires_grad=True), torch.ones(1, 1, 1)
        >>> buffers = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)
        >>> experts_adding_gradients(rows, up, down, torch.tensor([2]), 4, buffers).sum().backward()
        >>> buffers[0].item(), up.grad
        (2.0, None)
    """
    result: Tensor = _AddingGradients.apply(  # type: ignore[no-untyped-call]
        rows_RD, up, down_EDF, offsets_E, activation, *buffers
    )
    return result
