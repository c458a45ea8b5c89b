"""Rows from tokens in Triton: one program copies a piece of a few rows."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import rounded


@triton.jit
def permute_kernel(
    hidden_ptr, slot_ptr, weights_ptr, rows_ptr, num_rows, width, stride_t, stride_d,
    K: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``rows[r] = weights[s] · hidden[s // K]`` for the slot ``s`` of row ``r``; 0 without one."""
    row_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    here_r, inside_d = row_r < num_rows, column_d < width
    slot_r = tl.load(slot_ptr + row_r, mask=here_r, other=-1)
    used_r = slot_r >= 0
    place_rd = (slot_r // K)[:, None] * stride_t + column_d.to(tl.int64)[None, :] * stride_d
    value_rd = tl.load(hidden_ptr + place_rd, mask=used_r[:, None] & inside_d[None, :], other=0.0)
    if HAS_WEIGHTS:
        weight_r = tl.load(weights_ptr + slot_r, mask=used_r, other=0.0)
        product_rd = value_rd.to(weight_r.dtype) * weight_r[:, None]
        # The token of a row that has none was not read, but its weight might be NaN.
        value_rd = rounded(tl.where(used_r[:, None], product_rd, 0.0), rows_ptr.dtype.element_ty)
    out_rd = rows_ptr + row_r[:, None] * width + column_d[None, :]
    tl.store(out_rd, value_rd, mask=here_r[:, None] & inside_d[None, :])
