"""A mixture of few slots in Triton: products of matrices and single vectors, as fast as the matrices can be read.

Nothing is sorted or gathered. A program of the first kernel makes a piece of one slot's inner values, one of the second
a piece of one token; each loads a block of rows of a matrix at once, so that there is much in flight.
"""

import triton
import triton.language as tl

from moegate.ops.gpu.activation import value_and_slope
from moegate.ops.gpu.rounding import rounded


@triton.jit
def decode_up_kernel(
    hidden_ptr, index_ptr, weights_ptr, up_ptr, inner_ptr, num_experts, hidden_size, width,
    stride_t, stride_td, stride_e, stride_f, stride_d,
    K: tl.constexpr, FUNCTION: tl.constexpr, GATED: tl.constexpr, WEIGHT_INPUT: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``inner[s] = act(gate_e x) · (up_e x)`` of slot ``s``, its expert ``e`` and its token's ``x``, for ``BLOCK_F`` of
    them; not written where the slot names no expert."""
    slot = tl.program_id(0)
    expert = tl.load(index_ptr + slot).to(tl.int64)
    if (expert < 0) | (expert >= num_experts):
        return
    inner_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside_f = inner_f < width
    column_d = tl.arange(0, BLOCK_D)
    hidden_d = hidden_ptr + (slot // K).to(tl.int64) * stride_t + column_d.to(tl.int64) * stride_td
    up_fd = up_ptr + expert * stride_e + inner_f.to(tl.int64)[:, None] * stride_f
    up_fd += column_d.to(tl.int64)[None, :] * stride_d
    first_f = tl.zeros((BLOCK_F,), tl.float32)
    second_f = tl.zeros((BLOCK_F,), tl.float32)
    for start in range(0, hidden_size, BLOCK_D):
        left_d = (start + column_d) < hidden_size
        inside_fd = inside_f[:, None] & left_d[None, :]
        rows_fd = tl.load(up_fd, mask=inside_fd, other=0.0)
        if GATED:
            factors_fd = tl.load(up_fd + width * stride_f, mask=inside_fd, other=0.0)
        x_d = tl.load(hidden_d, mask=left_d, other=0.0).to(tl.float32)
        if WEIGHT_INPUT:
            # As where the rows are gathered, a weighted row is one of their type.
            x_d = rounded(x_d * tl.load(weights_ptr + slot), inner_ptr.dtype.element_ty).to(tl.float32)
        first_f += tl.sum(rows_fd.to(tl.float32) * x_d[None, :], axis=1)
        if GATED:
            second_f += tl.sum(factors_fd.to(tl.float32) * x_d[None, :], axis=1)
        hidden_d += BLOCK_D * stride_td
        up_fd += BLOCK_D * stride_d
    value_f, _ = value_and_slope(first_f, FUNCTION)
    if GATED:
        value_f *= second_f
    place_f = inner_ptr + slot.to(tl.int64) * width + inner_f
    tl.store(place_f, rounded(value_f, inner_ptr.dtype.element_ty), mask=inside_f)


@triton.jit
def decode_down_kernel(
    inner_ptr, index_ptr, weights_ptr, down_ptr, out_ptr, num_experts, hidden_size, width,
    stride_e, stride_d, stride_f,
    K: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """``out[t] = Σ_k weights[t, k] · down_e inner[t, k]`` for ``BLOCK_D`` outputs of a token, in the order of ``k``."""
    output_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside_d = output_d < hidden_size
    token = tl.program_id(1).to(tl.int64)
    lane_k = tl.arange(0, BLOCK_K)
    inner_f = tl.arange(0, BLOCK_F)
    sum_d = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, K, BLOCK_K):
        slot_k = token * K + first + lane_k
        expert_k = tl.load(index_ptr + slot_k, mask=first + lane_k < K, other=-1).to(tl.int64)
        used_k = (expert_k >= 0) & (expert_k < num_experts)
        inside_kd = used_k[:, None] & inside_d[None, :]
        down_kd = down_ptr + expert_k[:, None] * stride_e + output_d.to(tl.int64)[None, :] * stride_d
        part_kd = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        for start in range(0, width, BLOCK_F):
            place_f = start + inner_f
            left_f = place_f < width
            down_kdf = tl.load(
                down_kd[:, :, None] + place_f.to(tl.int64)[None, None, :] * stride_f,
                mask=inside_kd[:, :, None] & left_f[None, None, :],
                other=0.0,
            )
            inner_kf = tl.load(
                inner_ptr + slot_k[:, None] * width + place_f[None, :],
                mask=used_k[:, None] & left_f[None, :],
                other=0.0,
            )
            part_kd += tl.sum(down_kdf.to(tl.float32) * inner_kf.to(tl.float32)[:, None, :], axis=2)
        if HAS_WEIGHTS:
            part_kd *= tl.load(weights_ptr + slot_k, mask=used_k, other=0.0)[:, None]
        for k in tl.static_range(BLOCK_K):
            # What an unused slot is worth may be NaN; it adds 0.
            mine_k = used_k & (lane_k == k)
            sum_d += tl.sum(tl.where(mine_k[:, None], part_kd, 0.0), axis=0)
    out_d = out_ptr + token * hidden_size + output_d
    tl.store(out_d, rounded(sum_d, out_ptr.dtype.element_ty), mask=inside_d)
