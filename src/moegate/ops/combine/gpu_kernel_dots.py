"""Dot products of rows with their tokens in Triton, alone or while the rows or the tokens are written.

All add the products of a row up in the same order, which the width alone decides: in pieces of ``BLOCK_D`` columns. A
program takes up to 16 slots of its tokens at once, so that the token is loaded once, and each row once for both uses.
The pieces of all slots are loaded before the first is added up or written: no load overtakes a barrier or a store.
"""

import triton
import triton.language as tl

from moegate.ops.combine.gpu_kernel import piece_of, row_of, with_term, write_tokens
from moegate.ops.gpu.rounding import widened
from moegate.ops.permute.gpu_kernel import reached_rows, weight_of, weighted, write_unreached_rows


@triton.jit
def with_dots(dots_tk, step: tl.constexpr, row_td, hidden_td, used_t):
    """The dot products so far, those of one slot with those of a piece."""
    # The token of a slot without a row may be infinite.
    hidden_td = tl.where(used_t[:, None], hidden_td, 0.0)
    dot_t = tl.sum(widened(row_td, dots_tk.dtype) * widened(hidden_td, dots_tk.dtype), axis=1)
    is_step_k = tl.arange(0, dots_tk.shape[1]) == step
    return tl.where(is_step_k[None, :], dots_tk + dot_t[:, None], dots_tk)


@triton.jit
def write_dots(dots_tk, dots_ptr, token_t, here_t, first, top_k):
    """Writes the dot products of some slots of some tokens."""
    slot_k = first + tl.arange(0, dots_tk.shape[1])
    here_tk = here_t[:, None] & (slot_k < top_k)[None, :]
    tl.store(dots_ptr + token_t[:, None] * top_k + slot_k[None, :], dots_tk, mask=here_tk)


@triton.jit
def row_dots_kernel(
    rows_ptr, hidden_ptr, inverse_ptr, dots_ptr, num_tokens, num_rows, width, top_k,
    stride_r, stride_rd, stride_t, stride_td,
    WIDE: tl.constexpr, UNROLL: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``dots[t, k] = rows[inverse[t, k]] · hidden[t]``; 0 for a slot without a row."""
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    here_t, first = token_t < num_tokens, tl.program_id(1) * UNROLL
    dots_tk = tl.full((BLOCK_T, BLOCK_K), 0.0, WIDE)
    for start in range(0, width, BLOCK_D):
        column_d = start + tl.arange(0, BLOCK_D)
        hidden_td = piece_of(hidden_ptr, token_t, here_t, column_d, width, stride_t, stride_td)
        pieces, uses = (), ()
        for step in tl.static_range(UNROLL):
            slot_t = token_t * top_k + (first + step)
            row_t, used_t = row_of(inverse_ptr, slot_t, here_t & (slot_t < (token_t + 1) * top_k), num_rows)
            row_td = piece_of(rows_ptr, row_t, used_t, column_d, width, stride_r, stride_rd)
            pieces += (row_td,)
            uses += (used_t,)
        for step in tl.static_range(UNROLL):
            dots_tk = with_dots(dots_tk, step, pieces[step], hidden_td, uses[step])
    write_dots(dots_tk, dots_ptr, token_t, here_t, first, top_k)


@triton.jit
def combine_dots_kernel(
    rows_ptr, hidden_ptr, inverse_ptr, weights_ptr, out_ptr, dots_ptr, num_tokens, num_rows, width,
    stride_r, stride_rd, stride_t, stride_td,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What ``combine_kernel`` writes and what ``row_dots_kernel`` does, from one look at the rows."""
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    here_t = token_t < num_tokens
    dots_tk = tl.full((BLOCK_T, BLOCK_K), 0.0, WIDE)
    for start in range(0, width, BLOCK_D):
        column_d = start + tl.arange(0, BLOCK_D)
        hidden_td = piece_of(hidden_ptr, token_t, here_t, column_d, width, stride_t, stride_td)
        sum_td = tl.full((BLOCK_T, BLOCK_D), 0.0, WIDE)
        pieces, uses, factors = (), (), ()
        for step in tl.static_range(K):
            slot_t = token_t * K + step
            row_t, used_t = row_of(inverse_ptr, slot_t, here_t, num_rows)
            row_td = piece_of(rows_ptr, row_t, used_t, column_d, width, stride_r, stride_rd)
            pieces += (row_td,)
            uses += (used_t,)
            factors += (weight_of(weights_ptr, slot_t, used_t, True),)
        for step in tl.static_range(K):
            sum_td = with_term(sum_td, pieces[step], factors[step], uses[step], True)
            dots_tk = with_dots(dots_tk, step, pieces[step], hidden_td, uses[step])
        write_tokens(sum_td, out_ptr, token_t, here_t, column_d, width)
    write_dots(dots_tk, dots_ptr, token_t, here_t, 0, K)


@triton.jit
def permute_dots_kernel(
    rows_ptr, hidden_ptr, slot_ptr, inverse_ptr, weights_ptr, out_ptr, dots_ptr, num_tokens, num_slots, num_rows, width,
    stride_r, stride_rd, stride_t, stride_td,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What ``permute_kernel`` writes of the tokens and what ``row_dots_kernel`` does, from one look at the tokens."""
    program = tl.program_id(0)
    num_blocks = tl.cdiv(num_tokens, BLOCK_T)
    if program >= num_blocks:
        write_unreached_rows(
            hidden_ptr, slot_ptr, inverse_ptr, weights_ptr, out_ptr, program - num_blocks,
            num_slots, num_rows, width, K, stride_t, stride_td, True, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        token_t = program.to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        here_t = token_t < num_tokens
        dots_tk = tl.full((BLOCK_T, BLOCK_K), 0.0, WIDE)
        for start in range(0, width, BLOCK_D):
            column_d = start + tl.arange(0, BLOCK_D)
            hidden_td = piece_of(hidden_ptr, token_t, here_t, column_d, width, stride_t, stride_td)
            pieces, uses, places, writes, factors = (), (), (), (), ()
            for step in tl.static_range(K):
                slot_t = token_t * K + step
                row_t, used_t = row_of(inverse_ptr, slot_t, here_t, num_rows)
                row_td = piece_of(rows_ptr, row_t, used_t, column_d, width, stride_r, stride_rd)
                pieces += (row_td,)
                uses += (used_t,)
                place_t, reached_t = reached_rows(slot_ptr, inverse_ptr, slot_t, here_t, num_rows)
                places += (place_t,)
                writes += (reached_t,)
                factors += (weight_of(weights_ptr, slot_t, reached_t, True),)
            for step in tl.static_range(K):
                dots_tk = with_dots(dots_tk, step, pieces[step], hidden_td, uses[step])
            for step in tl.static_range(K):
                out_td = out_ptr + places[step][:, None] * width + column_d[None, :]
                inside_td = writes[step][:, None] & (column_d < width)[None, :]
                tl.store(out_td, weighted(hidden_td, factors[step], True), mask=inside_td)
        write_dots(dots_tk, dots_ptr, token_t, here_t, 0, K)
