"""The backward of the experts, as an operator that is differentiable itself.

Contract: from the gradient of the output ``[R, D]``, the rows ``[R, D]``, what went into the activation
``pre [R, 2F or F]`` and the weights, the gradients of the rows and of both weights. Rows beyond the last offset belong
to no expert: their gradient is zero and none comes from them. An expert without rows gets a gradient that is filled
with zeros once, and its weights are never read. ``pre`` is an argument of its own: its derivative counts where the
gradient is differentiated.

``experts_backward_into`` adds the gradients of the weights to existing buffers instead, of the weights' dtype or
float32, and touches those of experts with rows alone.

What serves them: the C++ kernel for float32 and bfloat16 on a CPU with AVX2 or AVX-512, which reads each weight once
and writes each gradient once; else the composition of ``grouped_mm``, ``grouped_outer`` and the derivative of the
activation. The kernel adds along each reduction in a fixed order, so the result doesn't depend on the number of
threads, and the gradient of a row doesn't depend on the rows around it. On a GPU Triton's kernels serve, or PyTorch's
grouped products between them; each adds along a reduction in a fixed order, too.
"""

from typing import Any

import torch
from torch import Tensor

from moegate.ops.experts.backward_reference import experts_backward_reference
from moegate.ops.library import KERNELS, define, implement, register_autograd, register_fake

__all__ = ["check_buffers", "experts_backward_into_reference", "kernel_serves"]

_Context = Any  # what register_autograd passes has no public type
_Gradients = tuple[Tensor, Tensor, Tensor]


def kernel_serves(dtype: torch.dtype, device: str, isa: str) -> bool:
    """Whether the C++ kernel computes the backward: PyTorch's products beat the one without vector instructions.

    Args:
        dtype: of the rows.
        device: the type of theirs.
        isa: the instruction set in force; empty without kernels.

    Example:
        >>> kernel_serves(torch.bfloat16, "cpu", "avx2"), kernel_serves(torch.float32, "cpu", "scalar")
        (True, False)
    """
    return device == "cpu" and dtype in (torch.float32, torch.bfloat16) and isa not in ("", "scalar")


def _serves(rows_RD: Tensor) -> bool:
    isa = torch.ops.moegate.cpu_isa() if KERNELS.loaded else ""
    return kernel_serves(rows_RD.dtype, rows_RD.device.type, isa)


def _experts_backward(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_RD: Tensor,
    rows_RD: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: int,
    needs_rows: bool,
    needs_weights: bool,
) -> _Gradients:
    tensors = (grad_out_RD, rows_RD, pre, up, down_EDF, offsets_E)
    if not _serves(rows_RD):
        return experts_backward_reference(*tensors, activation, needs_rows, needs_weights)
    grads = _empty_gradients(*tensors, activation, needs_rows, needs_weights)
    wanted = [
        grad if needed else None for grad, needed in zip(grads, (needs_rows, needs_weights, needs_weights), strict=True)
    ]
    torch.ops.moegate.experts_backward_kernel(*tensors, activation, *wanted, False)
    return grads


def _empty_gradients(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_RD: Tensor,
    rows_RD: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: int,
    needs_rows: bool,
    needs_weights: bool,
) -> _Gradients:
    return (
        rows_RD.new_empty(rows_RD.shape if needs_rows else 0),
        up.new_empty(up.shape if needs_weights else 0),
        down_EDF.new_empty(down_EDF.shape if needs_weights else 0),
    )


def _experts_backward_into(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_RD: Tensor,
    rows_RD: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: int,
    needs_rows: bool,
    grad_up: Tensor,
    grad_down_EDF: Tensor,
) -> Tensor:
    tensors = (grad_out_RD, rows_RD, pre, up, down_EDF, offsets_E)
    if _serves(rows_RD):
        grad_rows_RD = rows_RD.new_empty(rows_RD.shape if needs_rows else 0)
        torch.ops.moegate.experts_backward_kernel(
            *tensors, activation, grad_rows_RD if needs_rows else None, grad_up, grad_down_EDF, True
        )
        return grad_rows_RD
    return experts_backward_into_reference(*tensors, activation, needs_rows, grad_up, grad_down_EDF)


def experts_backward_into_reference(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_RD: Tensor,
    rows_RD: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: int,
    needs_rows: bool,
    grad_up: Tensor,
    grad_down_EDF: Tensor,
) -> Tensor:
    """The composition, of whose gradients those of experts with rows are added to the buffers."""
    tensors = (grad_out_RD, rows_RD, pre, up, down_EDF, offsets_E)
    check_buffers((grad_up, grad_down_EDF), (up, down_EDF))
    grad_rows_RD, added_up, added_down_EDF = experts_backward_reference(*tensors, activation, needs_rows, True)
    start = 0
    for expert, end in enumerate(offsets_E.tolist()):
        if end > start:
            grad_up[expert] += added_up[expert]
            grad_down_EDF[expert] += added_down_EDF[expert]
        start = end
    return grad_rows_RD


def check_buffers(buffers: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> None:
    """Raises where the kernel does."""
    for name, buffer, weight in zip(("grad_up", "grad_down"), buffers, weights, strict=True):
        fits = buffer.shape == weight.shape and buffer.is_contiguous() and buffer.device == weight.device
        if not fits or buffer.dtype not in (weight.dtype, torch.float32) or buffer.dtype != buffers[0].dtype:
            raise RuntimeError(
                f"{name} {tuple(buffer.shape)} of {buffer.dtype} must be contiguous, {tuple(weight.shape)} as its "
                f"weight is, and both of {weight.dtype} or both of float32."
            )


def _fake_into(grad_out_RD: Tensor, rows_RD: Tensor, *arguments: Any) -> Tensor:
    *_, needs_rows, _grad_up, _grad_down = arguments
    return rows_RD.new_empty(rows_RD.shape if needs_rows else 0)


define(
    "experts_backward(Tensor grad_out, Tensor rows, Tensor pre, Tensor up, Tensor down, Tensor offsets, "
    "int activation, bool needs_rows, bool needs_weights) -> (Tensor, Tensor, Tensor)",
    _experts_backward,
)
define(
    "experts_backward_into(Tensor grad_out, Tensor rows, Tensor pre, Tensor up, Tensor down, Tensor offsets, "
    "int activation, bool needs_rows, Tensor(a!) grad_up, Tensor(b!) grad_down) -> Tensor",
    _experts_backward_into,
)
implement("experts_backward", "moegate.ops.experts.gpu_operator:experts_backward")
implement("experts_backward_into", "moegate.ops.experts.gpu_operator:experts_backward_into")
register_fake("experts_backward", _empty_gradients)
register_fake("experts_backward_into", _fake_into)


def _save_for_second(ctx: _Context, inputs: tuple[Any, ...], output: _Gradients) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:]
    ctx.set_materialize_grads(False)


def _second_backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Through the composition, computed anew: its parts are differentiable as often as one likes."""
    needed = ctx.needs_input_grad[:5]
    activation, needs_rows, needs_weights = ctx.settings
    keeps_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views of their own, so that what `pre` was computed from isn't reached through `pre`.
        grad_out_RD, rows_RD, pre, up, down_EDF, offsets_E = (saved.view_as(saved) for saved in ctx.saved_tensors)
        tensors = (grad_out_RD, rows_RD, pre, up, down_EDF)
        outputs = experts_backward_reference(*tensors, offsets_E, activation, needs_rows, needs_weights)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        wanted = [tensor for tensor, is_needed in zip(tensors, needed, strict=True) if is_needed]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                wanted,
                [grad for _, grad in pairs],
                create_graph=keeps_graph,
                allow_unused=True,
            )
            if pairs
            else [None] * len(wanted)
        )
    return (*(next(found) if is_needed else None for is_needed in needed), None, None, None, None)


register_autograd("experts_backward", _second_backward, _save_for_second)
