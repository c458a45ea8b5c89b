"""Tokens from rows in Triton: one program sums a piece of a few tokens, and writes it once."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import rounded


@triton.jit
def combine_kernel(
    rows_ptr, inverse_ptr, weights_ptr, out_ptr, num_tokens, num_rows, width, stride_r, stride_d,
    K: tl.constexpr, HAS_WEIGHTS: tl.constexpr, WIDE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``out[t] = Σ_k weights[t, k] · rows[inverse[t, k]]``, in the order of ``k``, in the type ``WIDE``."""
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    column_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    here_t, inside_d = token_t < num_tokens, column_d < width
    sum_td = tl.full((BLOCK_T, BLOCK_D), 0.0, WIDE)
    for k in range(K):
        row_t = tl.load(inverse_ptr + token_t * K + k, mask=here_t, other=-1)
        used_t = (row_t >= 0) & (row_t < num_rows)
        place_td = row_t[:, None] * stride_r + column_d.to(tl.int64)[None, :] * stride_d
        term_td = tl.load(rows_ptr + place_td, mask=used_t[:, None] & inside_d[None, :], other=0.0).to(WIDE)
        if HAS_WEIGHTS:
            term_td *= tl.load(weights_ptr + token_t * K + k, mask=used_t, other=0.0)[:, None]
        sum_td = tl.where(used_t[:, None], sum_td + term_td, sum_td)
    out_td = out_ptr + token_t[:, None] * width + column_d[None, :]
    tl.store(out_td, rounded(sum_td, out_ptr.dtype.element_ty), mask=here_t[:, None] & inside_d[None, :])


@triton.jit
def row_dots_kernel(
    rows_ptr, hidden_ptr, inverse_ptr, dots_ptr, num_tokens, num_rows, width, stride_r, stride_rd, stride_t, stride_td,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``dots[t, k] = rows[inverse[t, k]] · hidden[t]`` of one token; 0 for a slot without a row."""
    token = tl.program_id(0).to(tl.int64)
    slot_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    row_k = tl.load(inverse_ptr + token * K + slot_k, mask=slot_k < K, other=-1)
    used_k = (row_k >= 0) & (row_k < num_rows)
    sum_kd = tl.full((BLOCK_K, BLOCK_D), 0.0, WIDE)
    for start in range(0, width, BLOCK_D):
        column_d = start + tl.arange(0, BLOCK_D)
        inside_d = column_d < width
        hidden_d = tl.load(hidden_ptr + token * stride_t + column_d.to(tl.int64) * stride_td, mask=inside_d, other=0.0)
        place_kd = row_k[:, None] * stride_r + column_d.to(tl.int64)[None, :] * stride_rd
        row_kd = tl.load(rows_ptr + place_kd, mask=used_k[:, None] & inside_d[None, :], other=0.0)
        sum_kd += row_kd.to(WIDE) * hidden_d.to(WIDE)[None, :]
    dots_k = tl.where(used_k, tl.sum(sum_kd, axis=1), 0.0)
    tl.store(dots_ptr + token * K + slot_k, dots_k, mask=slot_k < K)
