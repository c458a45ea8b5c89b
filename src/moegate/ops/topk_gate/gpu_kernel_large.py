"""What the gate beyond one tile is made of, besides top-k: what a softmax knows of its row, groups, and weights.

Names ending in letters give the axes: ``t`` tokens of the program, ``e`` experts, ``g`` groups, ``s`` experts of a
group, ``k`` slots.
"""

import triton
import triton.language as tl

from moegate.ops.gpu.ranking import index_of
from moegate.ops.gpu.rounding import widened
from moegate.ops.portable.gpu_kernel import greatest_of_row, score_of, softmax_total
from moegate.ops.topk_gate.gpu_kernel import weights_of


@triton.jit
def row_statistics_kernel(
    logits_ptr, mask_ptr, softmax_ptr, total_ptr, logsumexp_ptr, num_experts, stride_t, stride_e,
    WITH_SOFTMAX: tl.constexpr, WITH_TOTAL: tl.constexpr, WITH_LOGSUMEXP: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one token: the greatest logit and the total of the portable softmax; in float64 the two parts of the
    logsumexp, as ``greatest_and_log_total`` returns them, and their sum."""
    token = tl.program_id(0).to(tl.int64)
    if HAS_MASK:  # noqa: SIM102 - decided when the kernel is compiled
        if tl.load(mask_ptr + token) == 0:
            if WITH_LOGSUMEXP:
                tl.store(logsumexp_ptr + token, tl.full((), 0.0, tl.float64))
            return
    row_ptr = logits_ptr + token * stride_t
    greatest, spoiled = greatest_of_row(row_ptr, stride_e, num_experts, BLOCK)
    if WITH_SOFTMAX:
        of_softmax = tl.where(spoiled, float("nan"), greatest)
        tl.store(softmax_ptr + 2 * token, of_softmax)
        tl.store(softmax_ptr + 2 * token + 1, softmax_total(row_ptr, stride_e, num_experts, of_softmax, BLOCK))
    if WITH_TOTAL or WITH_LOGSUMEXP:
        # Of an infinite greatest logit the differences would be NaN.
        finite = tl.where(tl.abs(greatest) == float("inf"), 0.0, greatest).to(tl.float64)
        total_e = tl.full((BLOCK,), 0.0, tl.float64)
        for start in range(0, num_experts, BLOCK):
            expert_e = start + tl.arange(0, BLOCK)
            here_e = row_ptr + expert_e.to(tl.int64) * stride_e
            z_e = tl.load(here_e, mask=expert_e < num_experts, other=-float("inf"))
            total_e += tl.exp(widened(z_e, tl.float64) - finite)
        log_total = tl.log(tl.sum(total_e, axis=0))
        if WITH_TOTAL:
            tl.store(total_ptr + 2 * token, finite)
            tl.store(total_ptr + 2 * token + 1, log_total)
        if WITH_LOGSUMEXP:
            tl.store(logsumexp_ptr + token, finite + log_total)


@triton.jit
def group_scores_kernel(
    logits_ptr, bias_ptr, softmax_ptr, groups_ptr, num_groups, group_size, stride_t, stride_e,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, BY_TOP2_SUM: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The scores of ``BLOCK_G`` groups of one token: of each its greatest, or the sum of its two greatest."""
    token = tl.program_id(0).to(tl.int64)
    group_g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    greatest, total = 0.0, 1.0
    if SCORE == "softmax":
        greatest, total = tl.load(softmax_ptr + 2 * token), tl.load(softmax_ptr + 2 * token + 1)
    first_g = tl.full((BLOCK_G,), -float("inf"), tl.float32)
    second_g = tl.full((BLOCK_G,), -float("inf"), tl.float32)
    for start in range(0, group_size, BLOCK_S):
        member_s = start + tl.arange(0, BLOCK_S)
        real_gs = (group_g < num_groups)[:, None] & (member_s < group_size)[None, :]
        expert_gs = group_g[:, None] * group_size + member_s[None, :]
        here_gs = logits_ptr + token * stride_t + expert_gs.to(tl.int64) * stride_e
        z_gs = widened(tl.load(here_gs, mask=real_gs, other=-float("inf")), tl.float32)
        value_gs = score_of(z_gs, greatest, total, SCORE)
        if HAS_BIAS:
            value_gs += tl.load(bias_ptr + expert_gs, mask=real_gs, other=0.0)
        value_gs = tl.where(real_gs & (value_gs == value_gs), value_gs, -float("inf"))
        best_g = tl.max(value_gs, axis=1)
        if BY_TOP2_SUM:
            # Of equal greatest values exactly one is set aside, so that two of them count twice.
            place_gs = tl.where(value_gs == best_g[:, None], member_s[None, :], group_size)
            rest_gs = tl.where(member_s[None, :] == tl.min(place_gs, axis=1)[:, None], -float("inf"), value_gs)
            second_g = tl.maximum(tl.maximum(second_g, tl.max(rest_gs, axis=1)), tl.minimum(first_g, best_g))
        first_g = tl.maximum(first_g, best_g)
    if BY_TOP2_SUM:
        first_g += second_g
    tl.store(groups_ptr + token * num_groups + group_g, first_g, mask=group_g < num_groups)


@triton.jit
def weights_kernel(
    logits_ptr, mask_ptr, keys_ptr, spoiled_ptr, total_ptr, index_ptr, weights_ptr, chosen_ptr, counts_ptr,
    num_tokens, stride_t, stride_e, scale,
    K: tl.constexpr, EPS: tl.constexpr, WEIGHT_SCORE: tl.constexpr, RENORMALIZE: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_KEYS: tl.constexpr, WITH_COUNTS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The weights of the experts of ``BLOCK_T`` tokens; empties the slots of masked ones, and counts. The experts are
    those of the greatest of ``BLOCK_K`` keys a token, or stand in the index already."""
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot_k = tl.arange(0, BLOCK_K)
    here_t = token_t < num_tokens
    seen_t = here_t
    if HAS_MASK:
        seen_t = here_t & (tl.load(mask_ptr + token_t, mask=here_t, other=0) != 0)
    real_tk = tl.broadcast_to((slot_k < K)[None, :], (BLOCK_T, BLOCK_K))
    stored_tk = here_t[:, None] & real_tk
    wanted_tk = seen_t[:, None] & real_tk
    place_tk = token_t[:, None] * K + slot_k[None, :]
    # The keys and the indices of a masked token are arbitrary.
    if HAS_KEYS:
        key_tk = tl.load(keys_ptr + token_t[:, None] * BLOCK_K + slot_k[None, :], mask=here_t[:, None], other=0)
        expert_tk = tl.where(wanted_tk, index_of(tl.sort(key_tk, descending=True)), -1)
    else:
        expert_tk = tl.load(index_ptr + place_tk, mask=wanted_tk, other=-1)
    row_t = logits_ptr + token_t * stride_t
    here_tk = row_t[:, None] + expert_tk.to(tl.int64) * stride_e
    chosen_tk = widened(tl.load(here_tk, mask=wanted_tk, other=0.0), tl.float32)
    spoiled_t = tl.load(spoiled_ptr + token_t, mask=seen_t, other=0) != 0
    chosen_tk = tl.where(spoiled_t[:, None], float("nan"), chosen_tk)
    shifted_tk, log_total_t = chosen_tk.to(tl.float64), tl.full((BLOCK_T,), 0.0, tl.float64)
    if WEIGHT_SCORE == "softmax":
        shifted_tk -= tl.load(total_ptr + 2 * token_t, mask=seen_t, other=0.0)[:, None]
        log_total_t = tl.load(total_ptr + 2 * token_t + 1, mask=seen_t, other=0.0)
    weights_tk = weights_of(shifted_tk, log_total_t, real_tk, WEIGHT_SCORE, RENORMALIZE, EPS)
    # The scale is a rounding of its own; it may be infinite, and 0 times that is NaN.
    tl.store(weights_ptr + place_tk, tl.where(wanted_tk, weights_tk * scale, 0.0), mask=stored_tk)
    tl.store(chosen_ptr + place_tk, chosen_tk, mask=stored_tk)
    if HAS_MASK or HAS_KEYS:
        tl.store(index_ptr + place_tk, expert_tk, mask=stored_tk)
    if WITH_COUNTS:
        tl.atomic_add(counts_ptr + expert_tk, 1, mask=wanted_tk, sem="relaxed")
