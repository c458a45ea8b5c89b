"""Rows from tokens in Triton: a program loads a piece of a few tokens once, and writes it to each of their rows.

Programs go by tokens, not by rows: rows are sorted by expert, and by rows each token would be loaded ``K`` times. A
row that no token's program reaches, such as one of padding, is written by one of the programs behind those.
"""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import rounded, widened


@triton.jit
def reached_rows(slot_ptr, inverse_ptr, slot_t, used_t, num_rows):
    """The row of each slot, and whether the row says so too: then it is the slot's program that writes it."""
    row_t = tl.load(inverse_ptr + slot_t, mask=used_t, other=-1)
    inside_t = (row_t >= 0) & (row_t < num_rows)
    return row_t, inside_t & (tl.load(slot_ptr + row_t, mask=inside_t, other=-1) == slot_t)


@triton.jit
def weight_of(weights_ptr, slot_t, used_t, HAS_WEIGHTS: tl.constexpr):
    """The weight of each slot; what an empty slot has is not looked at."""
    return tl.load(weights_ptr + slot_t, mask=used_t, other=1.0) if HAS_WEIGHTS else slot_t


@triton.jit
def weighted(value_td, weight_t, HAS_WEIGHTS: tl.constexpr):
    """The values times the weights of their slots, rounded."""
    if HAS_WEIGHTS:
        value_td = rounded(widened(value_td, weight_t.dtype) * weight_t[:, None], value_td.dtype)
    return value_td


@triton.jit
def write_unreached_rows(
    hidden_ptr, slot_ptr, inverse_ptr, weights_ptr, rows_ptr, part, num_slots, num_rows, width, top_k,
    stride_t, stride_d, HAS_WEIGHTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows without a slot, which are 0, and rows whose slot names another row."""
    row_r = tl.cast(part, tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    here_r = row_r < num_rows
    slot_r = tl.load(slot_ptr + row_r, mask=here_r, other=-1)
    used_r = (slot_r >= 0) & (slot_r < num_slots)
    here_r = here_r & (tl.load(inverse_ptr + slot_r, mask=used_r, other=-1) != row_r)
    if tl.max(here_r.to(tl.int32), axis=0) > 0:
        used_r = used_r & here_r
        weight_r = weight_of(weights_ptr, slot_r, used_r, HAS_WEIGHTS)
        for start in range(0, width, BLOCK_C):
            column_d = start + tl.arange(0, BLOCK_C)
            inside_d = column_d < width
            place_rd = (slot_r // top_k)[:, None] * stride_t + column_d.to(tl.int64)[None, :] * stride_d
            value_rd = tl.load(hidden_ptr + place_rd, mask=used_r[:, None] & inside_d[None, :], other=0.0)
            value_rd = weighted(value_rd, weight_r, HAS_WEIGHTS)
            out_rd = rows_ptr + row_r[:, None] * width + column_d[None, :]
            tl.store(out_rd, value_rd, mask=here_r[:, None] & inside_d[None, :])


@triton.jit
def permute_kernel(
    hidden_ptr, slot_ptr, inverse_ptr, weights_ptr, rows_ptr,
    num_tokens, num_slots, num_rows, width, top_k, num_pieces, stride_t, stride_d,
    HAS_WEIGHTS: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``rows[r] = weights[s] · hidden[s // K]`` for the slot ``s`` of row ``r``; 0 without one."""
    program = tl.program_id(0)
    num_pieces_of_tokens = tl.cdiv(num_tokens, BLOCK_T) * num_pieces
    if program >= num_pieces_of_tokens:
        write_unreached_rows(
            hidden_ptr, slot_ptr, inverse_ptr, weights_ptr, rows_ptr, program - num_pieces_of_tokens,
            num_slots, num_rows, width, top_k, stride_t, stride_d, HAS_WEIGHTS, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        token_t = (program // num_pieces).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        column_d = (program % num_pieces) * BLOCK_D + tl.arange(0, BLOCK_D)
        here_t, inside_d = token_t < num_tokens, column_d < width
        place_td = token_t[:, None] * stride_t + column_d.to(tl.int64)[None, :] * stride_d
        hidden_td = tl.load(hidden_ptr + place_td, mask=here_t[:, None] & inside_d[None, :], other=0.0)
        for start in range(0, top_k, UNROLL):
            # All places are loaded before the first row is written: a load does not overtake a store.
            rows, writes, factors = (), (), ()
            for step in tl.static_range(UNROLL):
                slot_t = token_t * top_k + (start + step)
                used_t = here_t & (slot_t < (token_t + 1) * top_k)
                row_t, used_t = reached_rows(slot_ptr, inverse_ptr, slot_t, used_t, num_rows)
                rows += (row_t,)
                writes += (used_t,)
                factors += (weight_of(weights_ptr, slot_t, used_t, HAS_WEIGHTS),)
            for step in tl.static_range(UNROLL):
                value_td = weighted(hidden_td, factors[step], HAS_WEIGHTS)
                out_td = rows_ptr + rows[step][:, None] * width + column_d[None, :]
                tl.store(out_td, value_td, mask=writes[step][:, None] & inside_d[None, :])
