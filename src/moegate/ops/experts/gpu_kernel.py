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
    pre_ptr, grad_inner_ptr, inner_ptr, grad_pre_ptr, num_rows, width,
    FUNCTION: tl.constexpr, GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The inner values once more, and the gradient of ``pre``, each rounded once."""
    row_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside_rf = (row_r < num_rows)[:, None] & (column_f < width)[None, :]
    sides: tl.constexpr = 2 if GATED else 1
    place_rf = row_r[:, None] * (sides * width) + column_f[None, :]
    inner_rf = row_r[:, None] * width + column_f[None, :]
    element: tl.constexpr = inner_ptr.dtype.element_ty
    z_rf = tl.load(pre_ptr + place_rf, mask=inside_rf, other=0.0).to(tl.float32)
    grad_rf = tl.load(grad_inner_ptr + inner_rf, mask=inside_rf, other=0.0).to(tl.float32)
    value_rf, slope_rf = value_and_slope(z_rf, FUNCTION)
    if GATED:
        up_rf = tl.load(pre_ptr + place_rf + width, mask=inside_rf, other=0.0).to(tl.float32)
        tl.store(grad_pre_ptr + place_rf, rounded(grad_rf * up_rf * slope_rf, element), mask=inside_rf)
        tl.store(grad_pre_ptr + place_rf + width, rounded(grad_rf * value_rf, element), mask=inside_rf)
        value_rf *= up_rf
    else:
        tl.store(grad_pre_ptr + place_rf, rounded(grad_rf * slope_rf, element), mask=inside_rf)
    tl.store(inner_ptr + inner_rf, rounded(value_rf, element), mask=inside_rf)
