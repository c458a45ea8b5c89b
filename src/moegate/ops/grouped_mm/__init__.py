"""Matrix products of sorted rows with one matrix per group.

Contract: rows ``[R, I]`` are sorted by group; ``offsets [E]`` int64 holds the *end* of each group's rows. Rows
beyond the last offset belong to no group: their output is zero and no gradient comes from them. A group
without rows gets a zero gradient. Any floating dtype, any size, including zero; forward, backward and second
derivatives.

In plain PyTorch ``offsets`` is read on the host once per call, and what doesn't grow or leaves the rows is an error.
The Triton kernels (float32, bfloat16, float16) don't wait for it: they cut each end to the rows, a group that ends
before it starts has no rows, and rows that no group or several claim are arbitrary; nothing outside the tensors is
touched.
"""

import torch
from torch import Tensor

from moegate.ops.grouped_mm.reference import (
    check_grouped_mm,
    check_grouped_outer,
    grouped_mm_reference,
    grouped_outer_reference,
)
from moegate.ops.grouped_mm.transformed import grouped_mm_of_operators, grouped_outer_of_operators
from moegate.ops.library import define, implement, register_autograd, register_fake
from moegate.ops.transforms import is_transformed

__all__ = ["grouped_mm", "grouped_outer"]


def _fake_grouped_mm(rows_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    check_grouped_mm(rows_RI, weight_EOI, offsets_E)
    return rows_RI.new_empty(rows_RI.shape[0], weight_EOI.shape[1])


def _fake_grouped_outer(left_RO: Tensor, right_RI: Tensor, offsets_E: Tensor) -> Tensor:
    check_grouped_outer(left_RO, right_RI, offsets_E)
    return left_RO.new_empty(offsets_E.shape[0], left_RO.shape[1], right_RI.shape[1])


define("grouped_mm(Tensor rows, Tensor weight, Tensor offsets) -> Tensor", grouped_mm_reference)
define("grouped_outer(Tensor left, Tensor right, Tensor offsets) -> Tensor", grouped_outer_reference)
implement("grouped_mm", "moegate.ops.grouped_mm.gpu_operator:grouped_mm")
implement("grouped_outer", "moegate.ops.grouped_mm.gpu_operator:grouped_outer")
register_fake("grouped_mm", _fake_grouped_mm)
register_fake("grouped_outer", _fake_grouped_outer)
_grouped_mm = torch.ops.moegate.grouped_mm.default
_grouped_outer = torch.ops.moegate.grouped_outer.default


def _save_inputs(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_mm_backward(ctx: torch.autograd.function.FunctionCtx, grad_RO: Tensor) -> tuple[Tensor | None, ...]:
    rows_RI, weight_EOI, offsets_E = ctx.saved_tensors  # type: ignore[attr-defined]
    needs_rows, needs_weight, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
    grad_rows_RI = _grouped_mm(grad_RO, weight_EOI.mT, offsets_E) if needs_rows else None
    grad_weight_EOI = _grouped_outer(grad_RO, rows_RI, offsets_E) if needs_weight else None
    return grad_rows_RI, grad_weight_EOI, None


def _grouped_outer_backward(ctx: torch.autograd.function.FunctionCtx, grad_EOI: Tensor) -> tuple[Tensor | None, ...]:
    left_RO, right_RI, offsets_E = ctx.saved_tensors  # type: ignore[attr-defined]
    needs_left, needs_right, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
    grad_left_RO = _grouped_mm(right_RI, grad_EOI, offsets_E) if needs_left else None
    grad_right_RI = _grouped_mm(left_RO, grad_EOI.mT, offsets_E) if needs_right else None
    return grad_left_RO, grad_right_RI, None


register_autograd("grouped_mm", _grouped_mm_backward, _save_inputs)
register_autograd("grouped_outer", _grouped_outer_backward, _save_inputs)


def grouped_mm(rows_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """``out[r] = weight[e] @ rows[r]`` for every row ``r`` of group ``e``.

    Args:
        rows_RI: ``[R, I]``, sorted by group.
        weight_EOI: ``[E, O, I]``, the dtype of the rows.
        offsets_E: ``[E]`` int64, non-decreasing: the end of each group's rows.

    Returns:
        ``[R, O]``; rows that belong to no group are zero.

    Raises:
        ValueError: when shapes or dtypes do not fit.
        RuntimeError: when ``offsets`` decrease or leave the rows, where the host reads them.

    Example:
        >>> import torch
        >>> rows, weight = torch.ones(3, 2), torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]])
        >>> grouped_mm(rows, weight, torch.tensor([1, 3])).flatten().tolist()
        [2.0, 4.0, 4.0]
    """
    if rows_RI.ndim != 2 or weight_EOI.ndim != 3 or rows_RI.shape[1] != weight_EOI.shape[2]:
        raise ValueError(
            f"rows {tuple(rows_RI.shape)} and weight {tuple(weight_EOI.shape)} do not fit: "
            "expected rows [R, I] and weight [E, O, I]."
        )
    if offsets_E.shape != weight_EOI.shape[:1]:
        raise ValueError(
            f"offsets {tuple(offsets_E.shape)} must hold one end for each of {weight_EOI.shape[0]} groups."
        )
    if rows_RI.dtype != weight_EOI.dtype:
        raise ValueError(f"rows are {rows_RI.dtype} and weight is {weight_EOI.dtype}: convert one of them.")
    if is_transformed():
        return grouped_mm_of_operators(rows_RI, weight_EOI, offsets_E)
    result: Tensor = _grouped_mm(rows_RI, weight_EOI, offsets_E)
    return result


def grouped_outer(left_RO: Tensor, right_RI: Tensor, offsets_E: Tensor) -> Tensor:
    """``out[e] = sum over the rows r of group e of left[r] ⊗ right[r]``: the weight gradient of ``grouped_mm``.

    Args:
        left_RO: ``[R, O]``, sorted by group.
        right_RI: ``[R, I]``, the same rows.
        offsets_E: ``[E]`` int64, the end of each group's rows.

    Returns:
        ``[E, O, I]``; zero for a group without rows.

    Example:
        >>> import torch
        >>> grouped_outer(torch.ones(2, 1), torch.tensor([[1.0], [5.0]]), torch.tensor([1, 2])).flatten().tolist()
        [1.0, 5.0]
    """
    if is_transformed():
        return grouped_outer_of_operators(left_RO, right_RI, offsets_E)
    result: Tensor = _grouped_outer(left_RO, right_RI, offsets_E)
    return result
