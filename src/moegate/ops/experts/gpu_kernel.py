"""The activations of the experts in Triton, forward and backward, over rows as they lie."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import rounded

_ROOT_HALF = tl.constexpr(0.7071067811865476)
_NORMAL_DENSITY = tl.constexpr(0.3989422804014327)


@triton.jit
def value_and_slope(z, FUNCTION: tl.constexpr):
    """A function of float32 values, and its derivative."""
    if FUNCTION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        return z * sigmoid, sigmoid * (1.0 + z * (1.0 - sigmoid))
    if FUNCTION == "gelu":
        below = 0.5 * (1.0 + tl.erf(z * _ROOT_HALF))
        return z * below, below + z * tl.exp(-0.5 * z * z) * _NORMAL_DENSITY
    positive = tl.where(z != z, z, tl.maximum(z, 0.0))
    if FUNCTION == "relu2":
        return positive * positive, 2.0 * positive
    return positive, tl.where(z > 0, 1.0, 0.0)


@triton.jit
def activation_kernel(
    pre_ptr, inner_ptr, num_rows, width,
    FUNCTION: tl.constexpr, GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """``inner = act(gate) · up`` of ``pre [R, 2F]``, gate first, or ``act(pre)`` of ``pre [R, F]``."""
    row_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside_rf = (row_r < num_rows)[:, None] & (column_f < width)[None, :]
    sides: tl.constexpr = 2 if GATED else 1
    place_rf = row_r[:, None] * (sides * width) + column_f[None, :]
    z_rf = tl.load(pre_ptr + place_rf, mask=inside_rf, other=0.0).to(tl.float32)
    value_rf, _ = value_and_slope(z_rf, FUNCTION)
    element: tl.constexpr = inner_ptr.dtype.element_ty
    if GATED:
        # As PyTorch's two operations would, what the function gives is rounded before it is multiplied.
        up_rf = tl.load(pre_ptr + place_rf + width, mask=inside_rf, other=0.0).to(tl.float32)
        value_rf = rounded(value_rf, element).to(tl.float32) * up_rf
    tl.store(inner_ptr + row_r[:, None] * width + column_f[None, :], rounded(value_rf, element), mask=inside_rf)


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
