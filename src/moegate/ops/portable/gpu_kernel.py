"""The portable scores in Triton, for rows of any length: a row is read block by block."""

import triton
import triton.language as tl

from moegate.ops.gpu import portable
from moegate.ops.gpu.portable import portable_exp, portable_sigmoid, portable_sqrt_softplus
from moegate.ops.gpu.rounding import widened

_GRID = tl.constexpr(portable._GRID.value)


@triton.jit
def score_of(z, greatest, total, SCORE: tl.constexpr):
    """What a selection orders by, of float32 logits; ``greatest`` and ``total`` are what a softmax knows of its row."""
    if SCORE == "softmax":
        return tl.div_rn(portable_exp(z - greatest), tl.full(z.shape, 0.0, tl.float32) + total)
    if SCORE == "sigmoid":
        return portable_sigmoid(z)
    if SCORE == "sqrt_softplus":
        return portable_sqrt_softplus(z)
    if SCORE == "relu":
        return tl.where(z != z, z, tl.maximum(z, 0.0))
    return z


@triton.jit
def greatest_of_row(row_ptr, stride_e, num_experts, BLOCK: tl.constexpr):
    """The greatest logit of a row, and whether one is NaN."""
    greatest_e = tl.full((BLOCK,), -float("inf"), tl.float32)
    spoiled_e = tl.full((BLOCK,), 0, tl.int32)
    for start in range(0, num_experts, BLOCK):
        expert_e = start + tl.arange(0, BLOCK)
        z_e = tl.load(row_ptr + expert_e.to(tl.int64) * stride_e, mask=expert_e < num_experts, other=-float("inf"))
        z_e = widened(z_e, tl.float32)
        greatest_e = tl.maximum(greatest_e, tl.where(z_e == z_e, z_e, -float("inf")))
        spoiled_e = tl.where(z_e != z_e, 1, spoiled_e)
    return tl.max(greatest_e, axis=0), tl.max(spoiled_e, axis=0) > 0


@triton.jit
def softmax_total(row_ptr, stride_e, num_experts, greatest, BLOCK: tl.constexpr):
    """What the exponentials of a row sum to. They are added on a grid, exactly, so in any order."""
    total_e = tl.full((BLOCK,), 0.0, tl.float64)
    for start in range(0, num_experts, BLOCK):
        expert_e = start + tl.arange(0, BLOCK)
        real_e = expert_e < num_experts
        z_e = widened(tl.load(row_ptr + expert_e.to(tl.int64) * stride_e, mask=real_e, other=0.0), tl.float32)
        on_grid_e = (portable_exp(z_e - greatest).to(tl.float64) + _GRID) - _GRID
        total_e += tl.where(real_e, on_grid_e, 0.0)
    return tl.sum(total_e, axis=0).to(tl.float32)


@triton.jit
def elementwise_scores_kernel(logits_ptr, scores_ptr, num_elements, SCORE: tl.constexpr, BLOCK: tl.constexpr):
    """Scores that look at their own logit alone, of contiguous logits."""
    place_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real_n = place_n < num_elements
    z_n = widened(tl.load(logits_ptr + place_n, mask=real_n, other=0.0), tl.float32)
    tl.store(scores_ptr + place_n, score_of(z_n, 0.0, 1.0, SCORE), mask=real_n)


@triton.jit
def softmax_scores_kernel(logits_ptr, scores_ptr, num_experts, stride_t, stride_e, BLOCK: tl.constexpr):
    """The softmax of one row."""
    token = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + token * stride_t
    greatest, spoiled = greatest_of_row(row_ptr, stride_e, num_experts, BLOCK)
    greatest = tl.where(spoiled, float("nan"), greatest)
    total = softmax_total(row_ptr, stride_e, num_experts, greatest, BLOCK)
    for start in range(0, num_experts, BLOCK):
        expert_e = start + tl.arange(0, BLOCK)
        real_e = expert_e < num_experts
        z_e = widened(tl.load(row_ptr + expert_e.to(tl.int64) * stride_e, mask=real_e, other=0.0), tl.float32)
        out_e = scores_ptr + token * num_experts + expert_e
        tl.store(out_e, score_of(z_e, greatest, total, "softmax"), mask=real_e)
