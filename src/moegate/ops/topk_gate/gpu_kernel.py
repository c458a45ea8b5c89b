"""The gate in Triton: one program chooses for a few tokens, whose logits it holds as one tile.

Lanes of a tile are the experts, group by group, each group padded to a power of two; so a reduction over a group is one
along an axis. Names ending in letters give the axes as everywhere: ``t`` tokens of the program, ``e`` lanes, ``k`` slots.
"""

import triton
import triton.language as tl

from moegate.ops.gpu.portable import portable_sigmoid, portable_softmax, portable_sqrt_softplus
from moegate.ops.gpu.ranking import EXCLUDED, LOWEST, greatest_keys, index_of, keys_of, ordered


@triton.jit
def selection_scores(z_te, real_te, SCORE: tl.constexpr):
    """What a bias is added to, as ``moegate.ops.topk_gate.reference.selection_scores`` says."""
    if SCORE == "softmax":
        return portable_softmax(z_te, real_te)
    if SCORE == "sigmoid":
        return portable_sigmoid(z_te)
    if SCORE == "sqrt_softplus":
        return portable_sqrt_softplus(z_te)
    if SCORE == "relu":
        return tl.where(z_te != z_te, z_te, tl.maximum(z_te, 0.0))
    return z_te


@triton.jit
def kept_groups(values_te, real_te, GROUPS_KEPT: tl.constexpr, BY_TOP2_SUM: tl.constexpr, BLOCK_G: tl.constexpr):
    """``[t, g]``: whether each group of lanes stays."""
    BLOCK_T: tl.constexpr = values_te.shape[0]
    BLOCK_S: tl.constexpr = values_te.shape[1] // BLOCK_G
    values_te = tl.where(real_te & (values_te == values_te), values_te, -float("inf"))
    values_tgs = tl.reshape(values_te, (BLOCK_T, BLOCK_G, BLOCK_S))
    real_tg = tl.max(tl.reshape(real_te.to(tl.int32), (BLOCK_T, BLOCK_G, BLOCK_S)), axis=2)
    group_tg = tl.max(values_tgs, axis=2)
    if BY_TOP2_SUM:
        # Of equal greatest values exactly one is set aside, so that two of them count twice.
        lane_s = tl.arange(0, BLOCK_S)[None, None, :]
        first_tg1 = tl.expand_dims(tl.argmax(values_tgs, axis=2, tie_break_left=True), 2)
        group_tg += tl.max(tl.where(lane_s == first_tg1, -float("inf"), values_tgs), axis=2)
    group_g = tl.arange(0, BLOCK_G)[None, :]
    key_tg = keys_of(tl.where(real_tg > 0, ordered(group_tg), EXCLUDED), tl.broadcast_to(group_g, (BLOCK_T, BLOCK_G)))
    kept_tg = tl.full((BLOCK_T, BLOCK_G), 0, tl.int32)
    for _ in range(GROUPS_KEPT):
        best_t1 = tl.max(key_tg, axis=1)[:, None]
        kept_tg = tl.where(key_tg == best_t1, 1, kept_tg)
        key_tg = tl.where(key_tg == best_t1, LOWEST, key_tg)
    return kept_tg


@triton.jit
def scores_of(z_tk, logsumexp_t, real_tk, SCORE: tl.constexpr):
    """The scores of chosen logits, in float64."""
    if SCORE == "softmax":
        # A row with +inf, or of -inf alone, has no softmax.
        total_t = tl.where(tl.abs(logsumexp_t) == float("inf"), float("nan"), logsumexp_t)
        return tl.exp(z_tk - total_t[:, None])
    if SCORE == "softmax_selected":
        greatest_t = tl.max(tl.where(real_tk & (z_tk == z_tk), z_tk, -float("inf")), axis=1)
        share_tk = tl.where(real_tk, tl.exp(z_tk - greatest_t[:, None]), 0.0)
        return share_tk / tl.sum(share_tk, axis=1)[:, None]
    if SCORE == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-z_tk))
    if SCORE == "sqrt_softplus":
        small_tk = tl.exp(-tl.abs(z_tk))
        # log(1 + u) of a tiny u is a difference of nearly equal numbers; its series is not.
        log1p_tk = tl.where(small_tk < 1e-7, small_tk - small_tk * small_tk * 0.5, tl.log(1.0 + small_tk))
        above_tk = tl.where(z_tk > 0, z_tk, 0.0)
        body_tk = tl.where(z_tk != z_tk, z_tk, tl.sqrt(above_tk + log1p_tk))
        return tl.where(z_tk < -40.0, tl.exp(z_tk * 0.5), body_tk)
    if SCORE == "relu":
        return tl.where(z_tk != z_tk, z_tk, tl.where(z_tk > 0, z_tk, 0.0))
    return z_tk


@triton.jit
def weights_of(z_tk, logsumexp_t, real_tk, SCORE: tl.constexpr, RENORMALIZE: tl.constexpr, EPS: tl.constexpr):
    """``[t, k]`` float32 weights before the scale; the formula of ``moegate.ops.topk_gate.formula`` in float64."""
    score_tk = tl.where(real_tk, scores_of(z_tk, logsumexp_t, real_tk, SCORE), 0.0)
    if RENORMALIZE:
        score_tk = score_tk / (tl.sum(score_tk, axis=1)[:, None] + tl.full((1, 1), EPS, tl.float64))
    return score_tk.to(tl.float32)


@triton.jit
def logsumexp_of(z_te, real_te):
    """``[t]`` float64: of the lanes that are experts; NaN beside a NaN."""
    wide_te = tl.where(real_te, z_te, -float("inf")).to(tl.float64)
    greatest_t = tl.max(tl.where(wide_te == wide_te, wide_te, -float("inf")), axis=1)
    # Of an infinite greatest value the differences would be NaN.
    finite_t = tl.where(tl.abs(greatest_t) == float("inf"), 0.0, greatest_t)
    total_t = tl.sum(tl.where(real_te, tl.exp(wide_te - finite_t[:, None]), 0.0), axis=1)
    return tl.log(total_t) + finite_t


@triton.jit
def topk_gate_kernel(
    logits_ptr, bias_ptr, mask_ptr, weights_ptr, index_ptr, counts_ptr, logsumexp_ptr, chosen_ptr,
    num_tokens, stride_t, stride_e, scale,
    K: tl.constexpr, NUM_GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, GROUPS_KEPT: tl.constexpr,
    EPS: tl.constexpr, SCORE: tl.constexpr, WEIGHT_SCORE: tl.constexpr, BY_TOP2_SUM: tl.constexpr,
    RANKS_SCORES: tl.constexpr, RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
    WITH_COUNTS: tl.constexpr, WITH_LOGSUMEXP: tl.constexpr, WITH_CHOSEN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The experts and weights of ``BLOCK_T`` tokens."""
    BLOCK_E: tl.constexpr = BLOCK_G * BLOCK_S
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    here_t = token_t < num_tokens
    lane_e = tl.arange(0, BLOCK_E)
    group_e, member_e = lane_e // BLOCK_S, lane_e % BLOCK_S
    expert_e = group_e * GROUP_SIZE + member_e
    real_e = (group_e < NUM_GROUPS) & (member_e < GROUP_SIZE)
    real_te = tl.broadcast_to(real_e[None, :], (BLOCK_T, BLOCK_E))
    seen_t = here_t
    if HAS_MASK:
        seen_t = here_t & (tl.load(mask_ptr + token_t, mask=here_t, other=0) != 0)
    row_t = logits_ptr + token_t * stride_t
    place_te = row_t[:, None] + expert_e.to(tl.int64)[None, :] * stride_e
    z_te = tl.load(place_te, mask=seen_t[:, None] & real_te, other=0.0).to(tl.float32)
    spoiled_t = tl.max(tl.where(z_te != z_te, 1, 0), axis=1) > 0

    ranking_te = z_te
    grouped: tl.constexpr = GROUPS_KEPT < NUM_GROUPS
    if RANKS_SCORES or (grouped and BY_TOP2_SUM):
        scores_te = selection_scores(z_te, real_te, SCORE)
        if HAS_BIAS:
            scores_te += tl.load(bias_ptr + expert_e, mask=real_e, other=0.0)[None, :]
        if RANKS_SCORES:
            ranking_te = scores_te
    rank_te = tl.where(real_te, ordered(ranking_te), EXCLUDED)
    if grouped:
        if BY_TOP2_SUM:
            kept_tg = kept_groups(scores_te, real_te, GROUPS_KEPT, True, BLOCK_G)
        else:
            kept_tg = kept_groups(ranking_te, real_te, GROUPS_KEPT, False, BLOCK_G)
        kept_tgs = tl.broadcast_to(tl.expand_dims(kept_tg, 2), (BLOCK_T, BLOCK_G, BLOCK_S))
        rank_te = tl.where(tl.reshape(kept_tgs, (BLOCK_T, BLOCK_E)) > 0, rank_te, EXCLUDED)

    key_te = keys_of(rank_te, tl.broadcast_to(expert_e[None, :], (BLOCK_T, BLOCK_E)))
    expert_tk = index_of(greatest_keys(key_te, K, BLOCK_K))
    slot_k = tl.arange(0, BLOCK_K)
    real_tk = tl.broadcast_to((slot_k < K)[None, :], (BLOCK_T, BLOCK_K))
    wanted_tk = seen_t[:, None] & real_tk
    chosen_tk = tl.load(row_t[:, None] + expert_tk.to(tl.int64) * stride_e, mask=wanted_tk, other=0.0).to(tl.float32)
    chosen_tk = tl.where(spoiled_t[:, None], float("nan"), chosen_tk)
    logsumexp_t = tl.full((BLOCK_T,), 0.0, tl.float64)
    if WITH_LOGSUMEXP or WEIGHT_SCORE == "softmax":
        logsumexp_t = tl.where(seen_t, logsumexp_of(z_te, real_te), 0.0)
    weights_tk = weights_of(chosen_tk.to(tl.float64), logsumexp_t, real_tk, WEIGHT_SCORE, RENORMALIZE, EPS)

    place_tk = token_t[:, None] * K + slot_k[None, :]
    stored_tk = here_t[:, None] & real_tk
    expert_tk = tl.where(wanted_tk, expert_tk, -1)
    tl.store(index_ptr + place_tk, expert_tk, mask=stored_tk)
    tl.store(weights_ptr + place_tk, tl.where(wanted_tk, weights_tk, 0.0) * scale, mask=stored_tk)
    if WITH_CHOSEN:
        tl.store(chosen_ptr + place_tk, chosen_tk, mask=stored_tk)
    if WITH_LOGSUMEXP:
        tl.store(logsumexp_ptr + token_t, logsumexp_t, mask=here_t)
    if WITH_COUNTS:
        tl.atomic_add(counts_ptr + expert_tk, 1, mask=wanted_tk, sem="relaxed")
