"""Between the products of the training backward, in Triton: one program, the rows of a few slots."""

import triton
import triton.language as tl

from moegate.ops.gpu.activation import value_and_slope
from moegate.ops.gpu.rounding import rounded


@triton.jit
def inner_backward_kernel(
    pre_ptr, inner_ptr, weights_ptr, inverse_ptr, grad_pre_ptr, grad_weights_ptr, num_slots, num_rows, width,
    FUNCTION: tl.constexpr, GATED: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """``grad_pre = act'(pre) · w g`` and ``grad_w = <act(pre), g>`` of each slot's row; ``g``, which ``inner`` holds,
    becomes ``w · act(pre)`` in its place.

    By slots and not by rows, so that a slot without a row gets its gradient of 0 here too.
    """
    slot_s = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    here_s = slot_s < num_slots
    row_s = tl.load(inverse_ptr + slot_s, mask=here_s, other=-1)
    used_s = (row_s >= 0) & (row_s < num_rows)
    weight_s1 = tl.load(weights_ptr + slot_s, mask=used_s, other=0.0)[:, None]
    sides: tl.constexpr = 2 if GATED else 1
    element: tl.constexpr = inner_ptr.dtype.element_ty
    dot_sf = tl.zeros((BLOCK_S, BLOCK_F), tl.float32)
    for start in range(0, width, BLOCK_F):
        column_f = start + tl.arange(0, BLOCK_F)
        inside_sf = used_s[:, None] & (column_f < width)[None, :]
        inner_sf = inner_ptr + row_s[:, None] * width + column_f[None, :]
        place_sf = row_s[:, None] * (sides * width) + column_f[None, :]
        z_sf = tl.load(pre_ptr + place_sf, mask=inside_sf, other=0.0).to(tl.float32)
        grad_sf = tl.load(inner_sf, mask=inside_sf, other=0.0).to(tl.float32)
        value_sf, slope_sf = value_and_slope(z_sf, FUNCTION)
        weighted_sf = grad_sf * weight_s1
        if GATED:
            up_sf = tl.load(pre_ptr + place_sf + width, mask=inside_sf, other=0.0).to(tl.float32)
            tl.store(grad_pre_ptr + place_sf + width, rounded(weighted_sf * value_sf, element), mask=inside_sf)
            slope_sf *= up_sf
            value_sf *= up_sf
        tl.store(grad_pre_ptr + place_sf, rounded(weighted_sf * slope_sf, element), mask=inside_sf)
        tl.store(inner_sf, rounded(value_sf * weight_s1, element), mask=inside_sf)
        dot_sf += tl.where(inside_sf, value_sf * grad_sf, 0.0)
    tl.store(grad_weights_ptr + slot_s, tl.sum(dot_sf, axis=1), mask=here_s)
