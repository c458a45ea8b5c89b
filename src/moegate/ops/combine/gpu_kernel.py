"""Tokens from rows in Triton: a program sums a piece of some tokens in the order of their slots, and writes it once."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import rounded, widened
from moegate.ops.permute.gpu_kernel import weight_of


@triton.jit
def row_of(inverse_ptr, slot_t, here_t, num_rows):
    """The row of each slot, and whether there is one."""
    row_t = tl.load(inverse_ptr + slot_t, mask=here_t, other=-1)
    return row_t, (row_t >= 0) & (row_t < num_rows)


@triton.jit
def piece_of(values_ptr, row_t, used_t, column_d, width, stride_t, stride_d):
    """Some columns of some rows; 0 beyond the width, and for rows that are not used."""
    place_td = row_t[:, None] * stride_t + column_d.to(tl.int64)[None, :] * stride_d
    return tl.load(values_ptr + place_td, mask=used_t[:, None] & (column_d < width)[None, :], other=0.0)


@triton.jit
def with_term(sum_td, row_td, weight_t, used_t, HAS_WEIGHTS: tl.constexpr):
    """The sum and one more slot's row, multiplied and added in the type of the sum; without a row, the sum."""
    term_td = widened(row_td, sum_td.dtype)
    if HAS_WEIGHTS:
        term_td *= weight_t[:, None]
    return tl.where(used_t[:, None], sum_td + term_td, sum_td)


@triton.jit
def write_tokens(sum_td, out_ptr, token_t, here_t, column_d, width):
    """Rounds the sums, and writes them."""
    out_td = out_ptr + token_t[:, None] * width + column_d[None, :]
    inside_td = here_t[:, None] & (column_d < width)[None, :]
    tl.store(out_td, rounded(sum_td, out_ptr.dtype.element_ty), mask=inside_td)


@triton.jit
def combine_kernel(
    rows_ptr, inverse_ptr, weights_ptr, out_ptr, num_tokens, num_rows, width, top_k, num_pieces, stride_r, stride_d,
    HAS_WEIGHTS: tl.constexpr, WIDE: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``out[t] = Σ_k weights[t, k] · rows[inverse[t, k]]``, in the order of ``k``, in the type ``WIDE``."""
    program = tl.program_id(0)
    token_t = (program // num_pieces).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    column_d = (program % num_pieces) * BLOCK_D + tl.arange(0, BLOCK_D)
    here_t = token_t < num_tokens
    sum_td = tl.full((BLOCK_T, BLOCK_D), 0.0, WIDE)
    for start in range(0, top_k, UNROLL):
        pieces, uses, factors = (), (), ()
        for step in tl.static_range(UNROLL):
            slot_t = token_t * top_k + (start + step)
            row_t, used_t = row_of(inverse_ptr, slot_t, here_t & (slot_t < (token_t + 1) * top_k), num_rows)
            row_td = piece_of(rows_ptr, row_t, used_t, column_d, width, stride_r, stride_d)
            pieces += (row_td,)
            uses += (used_t,)
            factors += (weight_of(weights_ptr, slot_t, used_t, HAS_WEIGHTS),)
        for step in tl.static_range(UNROLL):
            sum_td = with_term(sum_td, pieces[step], factors[step], uses[step], HAS_WEIGHTS)
    write_tokens(sum_td, out_ptr, token_t, here_t, column_d, width)
