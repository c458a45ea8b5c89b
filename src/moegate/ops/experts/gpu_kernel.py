"""The activations of the experts in Triton, forward and backward, over rows as they lie."""

import triton
import triton.language as tl

from moegate.ops.gpu.activation import activated, value_and_slope
from moegate.ops.gpu.rounding import rounded


@triton.jit
def activation_kernel(
    pre_ptr, offsets_ptr, inner_ptr, num_groups, num_rows, width,
    FUNCTION: tl.constexpr, GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """``inner = act(gate) · up`` of ``pre [R, 2F]``, gate first, or ``act(pre)`` of ``pre [R, F]``.

    Rows behind the last offset may hold anything: their ``pre`` and ``inner`` become zero.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row_r, column_f = first + tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside_rf = (row_r < num_rows)[:, None] & (column_f < width)[None, :]
    owned_rf = inside_rf & (row_r < tl.load(offsets_ptr + num_groups - 1))[:, None]
    sides: tl.constexpr = 2 if GATED else 1
    pre_rf = pre_ptr + row_r[:, None] * (sides * width) + column_f[None, :]
    gate_rf = tl.load(pre_rf, mask=owned_rf, other=0.0)
    up_rf = tl.load(pre_rf + width, mask=owned_rf, other=0.0) if GATED else gate_rf
    inner_rf = activated(gate_rf, up_rf, FUNCTION, GATED, inner_ptr.dtype.element_ty)
    tl.store(inner_ptr + row_r[:, None] * width + column_f[None, :], inner_rf, mask=inside_rf)
    tl.store(pre_rf, gate_rf, mask=inside_rf & ~owned_rf)
    if GATED:
        tl.store(pre_rf + width, gate_rf, mask=inside_rf & ~owned_rf)


@triton.jit
def activation_backward_kernel(
    pre_ptr, grad_inner_ptr, inner_ptr, grad_pre_ptr, slot_ptr, weight_ptr, grad_weight_ptr,
    num_rows, num_slots, width,
    FUNCTION: tl.constexpr, GATED: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The inner values once more, and the gradient of ``pre``, each rounded once; a program does whole rows.

    ``WEIGHTED``, the output of row ``r`` counts ``weight[slot[r]]`` times and ``grad_inner`` doesn't know it yet: the
    gradient of ``pre`` and the inner values are multiplied by it, and the dot product of ``inner`` and ``grad_inner``
    is written to ``grad_weight[slot[r]]``. A row whose slot is none of ``num_slots`` gets zeros.
    """
    row_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside_r = row_r < num_rows
    weight_r = tl.full((BLOCK_R,), 1.0, tl.float32)
    found_r, slot_r = inside_r, row_r
    if WEIGHTED:
        slot_r = tl.load(slot_ptr + row_r, mask=inside_r, other=-1).to(tl.int64)
        found_r = (slot_r >= 0) & (slot_r < num_slots)
        weight_r = tl.load(weight_ptr + slot_r, mask=found_r, other=0.0).to(tl.float32)
    sides: tl.constexpr = 2 if GATED else 1
    element: tl.constexpr = inner_ptr.dtype.element_ty
    dot_rf = tl.zeros((BLOCK_R, BLOCK_F), tl.float32)
    for start in range(0, width, BLOCK_F):
        column_f = start + tl.arange(0, BLOCK_F)
        inside_rf = inside_r[:, None] & (column_f < width)[None, :]
        found_rf = found_r[:, None] & (column_f < width)[None, :]
        place_rf = row_r[:, None] * (sides * width) + column_f[None, :]
        inner_rf = row_r[:, None] * width + column_f[None, :]
        z_rf = tl.load(pre_ptr + place_rf, mask=found_rf, other=0.0).to(tl.float32)
        grad_rf = tl.load(grad_inner_ptr + inner_rf, mask=found_rf, other=0.0).to(tl.float32)
        value_rf, slope_rf = value_and_slope(z_rf, FUNCTION)
        slope_rf *= grad_rf * weight_r[:, None]
        if GATED:
            up_rf = tl.load(pre_ptr + place_rf + width, mask=found_rf, other=0.0).to(tl.float32)
            grad_up_rf = grad_rf * weight_r[:, None] * value_rf
            tl.store(grad_pre_ptr + place_rf + width, rounded(grad_up_rf, element), mask=inside_rf)
            slope_rf *= up_rf
            value_rf *= up_rf
        tl.store(grad_pre_ptr + place_rf, rounded(slope_rf, element), mask=inside_rf)
        tl.store(inner_ptr + inner_rf, rounded(value_rf * weight_r[:, None], element), mask=inside_rf)
        dot_rf += value_rf * grad_rf
    if WEIGHTED:
        tl.store(grad_weight_ptr + slot_r, tl.sum(dot_rf, axis=1), mask=found_r)
