"""The gate in Triton: one program chooses for a few tokens, whose logits it holds as one tile.

Lanes of a tile are the experts, group by group, each group padded to a power of two; so a reduction over a group is one
along an axis. Names ending in letters give the axes as everywhere: ``t`` tokens of the program, ``e`` lanes, ``g``
groups, ``k`` slots.

The experts are chosen by rough keys of rough scores, which cost a few instructions a logit; a token for which that
leaves any doubt is ranked again by all bits of the portable scores. The result is the exact one either way.
"""

import triton
import triton.language as tl

from moegate.ops.gpu.portable import portable_sigmoid, portable_softmax, portable_sqrt_softplus
from moegate.ops.gpu.ranking import EXCLUDED, LOWEST, keys_of, ordered, places_in_order
from moegate.ops.gpu.rough_ranking import (
    LOWEST_KEY,
    greatest_of_columns,
    greatest_of_lists,
    greatest_value,
    is_nan_key,
    least_value,
    log2,
    position_of,
    rough_keys,
    surely_greater,
)
from moegate.ops.gpu.rounding import widened

_NEGATIVE_INFINITY = tl.constexpr(float("-inf"))


@triton.constexpr_function
def error_of(score):
    """By how much of 1 plus their size two ``rough_scores`` must differ to be surely in order."""
    # Each is off by less than 2^-20; a bias of any size adds a rounding.
    return 2.0**-18 if score in ("softmax", "sigmoid", "sqrt_softplus") else 0.0


@triton.jit
def loaded(logits_ptr, token_t, seen_t, expert_e, real_e, stride_t, stride_e):
    """``[t, e]`` float32 logits, 0 where there is none."""
    place_te = logits_ptr + token_t[:, None] * stride_t + expert_e.to(tl.int64)[None, :] * stride_e
    return widened(tl.load(place_te, mask=seen_t[:, None] & real_e[None, :], other=0.0), tl.float32)


@triton.jit
def group_and_member(lane_e, BLOCK_S: tl.constexpr, COLUMNS: tl.constexpr, NEIGHBOURS: tl.constexpr):
    """What each lane stands for; with columns, those of a group follow each other, and so do the members of each."""
    if COLUMNS == 0:
        group_e, member_e = lane_e // BLOCK_S, lane_e % BLOCK_S
    else:
        # Of the lanes, not of their places: so the compiler sees that neighbours are loaded at once.
        MEMBERS: tl.constexpr = lane_e.shape[0] // COLUMNS
        column_e = lane_e // NEIGHBOURS % COLUMNS
        member_e = lane_e // (NEIGHBOURS * COLUMNS) * NEIGHBOURS + lane_e % NEIGHBOURS
        group_e, member_e = column_e // (BLOCK_S // MEMBERS), column_e % (BLOCK_S // MEMBERS) * MEMBERS + member_e
    return group_e, member_e


@triton.jit
def is_expert(group, member, NUM_GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, BLOCK_S: tl.constexpr):
    """Whether there is such a member of such a group."""
    if GROUP_SIZE == BLOCK_S:
        return group < NUM_GROUPS
    return (group < NUM_GROUPS) & (member < GROUP_SIZE)


@triton.jit
def has_bits_below(z_te, BITS: tl.constexpr):
    """``[t]``: whether any logit has one of the lowest bits."""
    return tl.max(z_te.to(tl.int32, bitcast=True) & ((1 << BITS) - 1), axis=1) > 0


@triton.jit
def portable_scores(z_te, real_te, SCORE: tl.constexpr):
    """What a bias is added to, as ``moegate.ops.topk_gate.reference.selection_scores`` says."""
    if SCORE == "softmax":
        return portable_softmax(z_te, real_te)
    if SCORE == "sigmoid":
        return portable_sigmoid(z_te)
    if SCORE == "sqrt_softplus":
        return portable_sqrt_softplus(z_te)
    if SCORE == "relu":
        return tl.where(z_te < 0, 0.0, z_te)
    return z_te


@triton.jit
def rough_scores(z_te, real_te, SCORE: tl.constexpr):
    """``portable_scores`` with an error below ``error_of``; NaN where they are, and here and there beside."""
    if SCORE == "softmax":
        greatest_t = tl.max(tl.where(real_te, z_te, _NEGATIVE_INFINITY), axis=1)
        share_te = tl.where(real_te, tl.exp(z_te - greatest_t[:, None]), 0.0)
        return share_te * (1.0 / tl.sum(share_te, axis=1))[:, None]
    if SCORE == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-z_te))
    if SCORE == "sqrt_softplus":
        power_te = tl.exp(-tl.abs(z_te))
        above_te = tl.where(z_te < 0, 0.0, z_te)
        # Far below 0 the logarithm loses what its root would show: a series.
        series_te = tl.sqrt(power_te) * (1.0 - power_te * (0.25 - 13.0 / 96.0 * power_te))
        return tl.where(z_te < -4.0, series_te, tl.sqrt(above_te + tl.log(1.0 + power_te)))
    if SCORE == "relu":
        return tl.where(z_te < 0, 0.0, z_te)
    return z_te


@triton.jit
def rough_groups(
    first_tc, second_tc, GROUPS_KEPT: tl.constexpr, BY_TOP2_SUM: tl.constexpr, BLOCK_G: tl.constexpr,
    BITS: tl.constexpr, EXACT: tl.constexpr, ERROR: tl.constexpr,
):  # fmt: skip
    """``[t, c]`` whether the group of a column stays; ``[t]`` whether that is hidden; ``[t]`` whether it is astray."""
    COLUMNS: tl.constexpr = first_tc.shape[1]
    GROUP_BITS: tl.constexpr = log2(BLOCK_G) if BY_TOP2_SUM else BITS
    first_tgc = tl.reshape(first_tc, (first_tc.shape[0], BLOCK_G, COLUMNS // BLOCK_G))
    first_tg = tl.max(first_tgc, axis=2)
    astray_t = is_nan_key(tl.max(of_group(first_tg, COLUMNS), axis=1), BITS)
    least_tg, greatest_tg = first_tg, first_tg
    if BY_TOP2_SUM:
        # No two keys are alike, so that of two equal values one is set aside and both count.
        second_tgc = tl.reshape(second_tc, first_tgc.shape)
        second_tg = tl.max(tl.where(first_tgc == first_tg[:, :, None], second_tgc, first_tgc), axis=2)
        group_1g = tl.arange(0, BLOCK_G)[None, :]
        least_tg = rough_keys(least_value(first_tg, BITS) + least_value(second_tg, BITS), group_1g, GROUP_BITS)
        greatest_tg = rough_keys(greatest_value(first_tg, BITS) + greatest_value(second_tg, BITS), group_1g, GROUP_BITS)
        astray_t |= is_nan_key(tl.max(of_group(least_tg, COLUMNS), axis=1), GROUP_BITS)
    # All columns of a group hold its key, for a maximum over a whole row is one instruction.
    key_tc = of_group(least_tg, COLUMNS)
    kept_tc = tl.full(first_tc.shape, False, tl.int1)
    worst_t = tl.max(key_tc, axis=1)
    for kept in tl.static_range(GROUPS_KEPT):
        if kept > 0:
            worst_t = tl.max(tl.where(kept_tc, LOWEST_KEY, key_tc), axis=1)
        kept_tc |= key_tc == worst_t[:, None]
    best_dropped_t = tl.max(tl.where(kept_tc, LOWEST_KEY, of_group(greatest_tg, COLUMNS)), axis=1)
    hidden_t = tl.full(astray_t.shape, False, tl.int1)
    if not EXACT:
        least_t, greatest_t = least_value(worst_t, GROUP_BITS), greatest_value(best_dropped_t, GROUP_BITS)
        hidden_t = ~surely_greater(least_t, greatest_t, ERROR)
    return kept_tc, hidden_t, astray_t


@triton.jit
def roughly_chosen(
    z_te, bias_ptr, place_e, expert_e, real_e,
    K: tl.constexpr, GROUPS_KEPT: tl.constexpr, SCORE: tl.constexpr, BY_TOP2_SUM: tl.constexpr,
    RANKS_SCORES: tl.constexpr, HAS_BIAS: tl.constexpr, EXACT: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr, COLUMNS: tl.constexpr, NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    """``[t, k]`` the places chosen by rough keys; ``[t]`` whether they are hidden; ``[t]`` whether they are astray.

    Hidden is an order that turns on what keys do not hold; astray is a choice beside a NaN, or from lists too short.
    """
    BITS: tl.constexpr = log2(z_te.shape[1])
    GROUPED: tl.constexpr = GROUPS_KEPT < BLOCK_G
    RANK_ERROR: tl.constexpr = error_of(SCORE) if RANKS_SCORES else 0.0
    scores_te = z_te
    if RANKS_SCORES or (GROUPED and BY_TOP2_SUM):
        scores_te = rough_scores(z_te, tl.broadcast_to(real_e[None, :], z_te.shape), SCORE)
        if HAS_BIAS:
            scores_te += tl.load(bias_ptr + expert_e, mask=real_e, other=0.0)[None, :]
    key_te = real_keys(scores_te if RANKS_SCORES else z_te, place_e, real_e, BITS, PADDED)
    first_tc, second_tc, third_tc, rest_tc = greatest_of_columns(key_te, COLUMNS, NEIGHBOURS)
    hidden_t = tl.full((z_te.shape[0],), False, tl.int1)
    astray_t = hidden_t
    if GROUPED:
        head_tc, next_tc = first_tc, second_tc
        if BY_TOP2_SUM and not RANKS_SCORES:
            score_key_te = real_keys(scores_te, place_e, real_e, BITS, PADDED)
            head_tc, next_tc, _, _ = greatest_of_columns(score_key_te, COLUMNS, NEIGHBOURS)
        GROUP_ERROR: tl.constexpr = 2.0 * error_of(SCORE) if BY_TOP2_SUM else RANK_ERROR
        kept_tc, hidden_t, astray_t = rough_groups(
            head_tc, next_tc, GROUPS_KEPT, BY_TOP2_SUM, BLOCK_G, BITS, EXACT and not BY_TOP2_SUM, GROUP_ERROR
        )
        # What lies behind the head of a list comes into play with the head alone.
        first_tc = tl.where(kept_tc, first_tc, LOWEST_KEY)
        rest_tc = tl.where(kept_tc, rest_tc, LOWEST_KEY)
    key_tk, following_tk = greatest_of_lists(first_tc, second_tc, third_tc, rest_tc, K, BLOCK_K)
    slot_k = tl.arange(0, BLOCK_K)[None, :] < K
    astray_t |= tl.max((slot_k & ((following_tk > key_tk) | is_nan_key(key_tk, BITS))).to(tl.int32), axis=1) > 0
    if not EXACT:
        sure_tk = surely_greater(least_value(key_tk, BITS), greatest_value(following_tk, BITS), RANK_ERROR)
        hidden_t |= tl.max((slot_k & ~sure_tk).to(tl.int32), axis=1) > 0
    return position_of(key_tk, BITS), hidden_t, astray_t


@triton.jit
def real_keys(values_te, place_e, real_e, BITS: tl.constexpr, PADDED: tl.constexpr):
    """``[t, e]`` rough keys, of which those of no expert rank last."""
    key_te = rough_keys(values_te, place_e[None, :], BITS)
    if PADDED:
        return tl.where(real_e[None, :], key_te, LOWEST_KEY)
    return key_te


@triton.jit
def of_group(values_tg, BLOCK_E: tl.constexpr):
    """``[t, e]``: what holds for the group of each lane."""
    BLOCK_T: tl.constexpr = values_tg.shape[0]
    BLOCK_G: tl.constexpr = values_tg.shape[1]
    values_tgs = tl.broadcast_to(values_tg[:, :, None], (BLOCK_T, BLOCK_G, BLOCK_E // BLOCK_G))
    return tl.reshape(values_tgs, (BLOCK_T, BLOCK_E))


@triton.jit
def exact_groups(
    values_te, real_te, GROUPS_KEPT: tl.constexpr, BY_TOP2_SUM: tl.constexpr, BLOCK_G: tl.constexpr
):  # fmt: skip
    """``[t, g]``: whether each group of lanes stays."""
    BLOCK_T: tl.constexpr = values_te.shape[0]
    BLOCK_S: tl.constexpr = values_te.shape[1] // BLOCK_G
    values_te = tl.where(real_te & (values_te == values_te), values_te, _NEGATIVE_INFINITY)
    values_tgs = tl.reshape(values_te, (BLOCK_T, BLOCK_G, BLOCK_S))
    real_tg = tl.max(tl.reshape(real_te.to(tl.int32), (BLOCK_T, BLOCK_G, BLOCK_S)), axis=2)
    group_tg = tl.max(values_tgs, axis=2)
    if BY_TOP2_SUM:
        # Of equal greatest values exactly one is set aside, so that two of them count twice.
        lane_s = tl.arange(0, BLOCK_S)[None, None, :]
        first_tg1 = tl.expand_dims(tl.argmax(values_tgs, axis=2, tie_break_left=True), 2)
        group_tg += tl.max(tl.where(lane_s == first_tg1, _NEGATIVE_INFINITY, values_tgs), axis=2)
    group_g = tl.arange(0, BLOCK_G)[None, :]
    key_tg = keys_of(tl.where(real_tg > 0, ordered(group_tg), EXCLUDED), tl.broadcast_to(group_g, (BLOCK_T, BLOCK_G)))
    kept_tg = tl.full((BLOCK_T, BLOCK_G), False, tl.int1)
    for _ in range(GROUPS_KEPT):
        best_tg = key_tg == tl.max(key_tg, axis=1)[:, None]
        kept_tg |= best_tg
        key_tg = tl.where(best_tg, LOWEST, key_tg)
    return kept_tg


@triton.jit
def exactly_chosen(
    row_ptr, bias_ptr, stride_e,
    K: tl.constexpr, NUM_GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, GROUPS_KEPT: tl.constexpr, SCORE: tl.constexpr,
    BY_TOP2_SUM: tl.constexpr, RANKS_SCORES: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``[1, k]`` the places of the experts of one token, whatever its logits, and whether one of these is NaN."""
    GROUPED: tl.constexpr = GROUPS_KEPT < BLOCK_G
    place_e = tl.arange(0, BLOCK_G * BLOCK_S)
    group_e, member_e = place_e // BLOCK_S, place_e % BLOCK_S
    expert_e = group_e * GROUP_SIZE + member_e
    real_e = is_expert(group_e, member_e, NUM_GROUPS, GROUP_SIZE, BLOCK_S)
    z_e = widened(tl.load(row_ptr + expert_e.to(tl.int64) * stride_e, mask=real_e, other=0.0), tl.float32)
    z_te, real_te = z_e[None, :], real_e[None, :]
    scores_te = z_te
    if RANKS_SCORES or (GROUPED and BY_TOP2_SUM):
        scores_te = portable_scores(z_te, real_te, SCORE)
        if HAS_BIAS:
            scores_te += tl.load(bias_ptr + expert_e, mask=real_e, other=0.0)[None, :]
    ranking_te = scores_te if RANKS_SCORES else z_te
    rank_te = tl.where(real_te, ordered(ranking_te), EXCLUDED)
    if GROUPED:
        kept_tg = exact_groups(scores_te if BY_TOP2_SUM else ranking_te, real_te, GROUPS_KEPT, BY_TOP2_SUM, BLOCK_G)
        rank_te = tl.where(of_group(kept_tg, BLOCK_G * BLOCK_S), rank_te, EXCLUDED)
    return places_in_order(rank_te, place_e[None, :], K, BLOCK_K), tl.max((z_e != z_e).to(tl.int32), axis=0)


@triton.jit
def scores_of(z_tk, logsumexp_t, real_tk, SCORE: tl.constexpr):
    """The scores of chosen logits, in float64."""
    if SCORE == "softmax":
        # A row with +inf, or of -inf alone, has no softmax.
        total_t = tl.where(tl.abs(logsumexp_t) == float("inf"), float("nan"), logsumexp_t)
        return tl.exp(z_tk - total_t[:, None])
    if SCORE == "softmax_selected":
        greatest_t = tl.max(tl.where(real_tk & (z_tk == z_tk), z_tk, _NEGATIVE_INFINITY), axis=1)
        share_tk = tl.where(real_tk, tl.exp(z_tk - greatest_t[:, None]), 0.0)
        total_t = tl.sum(share_tk, axis=1)
        return share_tk / tl.where(total_t == 0.0, 1.0, total_t)[:, None]  # 0 of a token without experts
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
def greatest_and_log_total(z_te, real_te):
    """``[t]`` float64, of the lanes that are experts: the greatest, 0 for an infinite one, and the logarithm of what
    the exponentials of the differences to it sum to. Their sum is the logsumexp; NaN beside a NaN."""
    wide_te = tl.where(real_te, z_te, _NEGATIVE_INFINITY).to(tl.float64)
    greatest_t = tl.max(tl.where(wide_te == wide_te, wide_te, _NEGATIVE_INFINITY), axis=1)
    # Of an infinite greatest value the differences would be NaN.
    finite_t = tl.where(tl.abs(greatest_t) == float("inf"), 0.0, greatest_t)
    total_t = tl.sum(tl.where(real_te, tl.exp(wide_te - finite_t[:, None]), 0.0), axis=1)
    return finite_t, tl.log(total_t)


@triton.jit
def topk_gate_kernel(
    logits_ptr, bias_ptr, mask_ptr, weights_ptr, index_ptr, counts_ptr, logsumexp_ptr, chosen_ptr,
    num_tokens, stride_t, stride_e, scale,
    K: tl.constexpr, NUM_GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, GROUPS_KEPT: tl.constexpr,
    EPS: tl.constexpr, SCORE: tl.constexpr, WEIGHT_SCORE: tl.constexpr, BY_TOP2_SUM: tl.constexpr,
    RANKS_SCORES: tl.constexpr, RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
    WITH_COUNTS: tl.constexpr, WITH_LOGSUMEXP: tl.constexpr, WITH_CHOSEN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
    COLUMNS: tl.constexpr, NEIGHBOURS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The experts and weights of ``BLOCK_T`` tokens; by exact keys alone if ``COLUMNS`` is 0."""
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    here_t = token_t < num_tokens
    seen_t = here_t
    if HAS_MASK:
        seen_t = here_t & (tl.load(mask_ptr + token_t, mask=here_t, other=0) != 0)
    lane_e = tl.arange(0, BLOCK_G * BLOCK_S)
    GROUPED: tl.constexpr = GROUPS_KEPT < BLOCK_G
    group_e, member_e = group_and_member(lane_e, BLOCK_S, COLUMNS if GROUPED else 0, NEIGHBOURS)
    place_e, expert_e = group_e * BLOCK_S + member_e, group_e * GROUP_SIZE + member_e
    real_e = is_expert(group_e, member_e, NUM_GROUPS, GROUP_SIZE, BLOCK_S)
    z_te = loaded(logits_ptr, token_t, seen_t, expert_e, real_e, stride_t, stride_e)
    place_tk = tl.full((BLOCK_T, BLOCK_K), 0, tl.int32)
    doubtful_t = seen_t
    if COLUMNS > 0:
        PADDED: tl.constexpr = BLOCK_G * BLOCK_S != NUM_GROUPS * GROUP_SIZE
        place_tk, hidden_t, astray_t = roughly_chosen(
            z_te, bias_ptr, place_e, expert_e, real_e, K, GROUPS_KEPT, SCORE, BY_TOP2_SUM, RANKS_SCORES, HAS_BIAS,
            EXACT, PADDED, BLOCK_G, BLOCK_K, COLUMNS, NEIGHBOURS
        )  # fmt: skip
        doubtful_t = seen_t & (hidden_t | astray_t)
    spoiled_t = tl.full((BLOCK_T,), 0, tl.int32)
    if tl.max(doubtful_t.to(tl.int32), axis=0) > 0:
        # By logits, or scores with their bits.
        BY_BITS: tl.constexpr = not HAS_BIAS and not (RANKS_SCORES and error_of(SCORE) > 0.0)
        if COLUMNS > 0 and BY_BITS and not EXACT and not (GROUPED and BY_TOP2_SUM):
            # Of logits that come from a narrower type a key cuts nothing off. They are read again, so that no register
            # holds them until here.
            again_te = loaded(logits_ptr, token_t, seen_t, expert_e, real_e, stride_t, stride_e)
            doubtful_t &= astray_t | has_bits_below(again_te, log2(BLOCK_G * BLOCK_S))
        row_t = tl.arange(0, BLOCK_T)
        for row in range(BLOCK_T):
            is_row_t = row_t == row
            if tl.max((is_row_t & doubtful_t).to(tl.int32), axis=0) > 0:
                place_1k, spoiled = exactly_chosen(
                    logits_ptr + (tl.program_id(0).to(tl.int64) * BLOCK_T + row) * stride_t, bias_ptr, stride_e, K,
                    NUM_GROUPS, GROUP_SIZE, GROUPS_KEPT, SCORE, BY_TOP2_SUM, RANKS_SCORES, HAS_BIAS,
                    BLOCK_G, BLOCK_S, BLOCK_K
                )  # fmt: skip
                place_tk = tl.where(is_row_t[:, None], place_1k, place_tk)
                spoiled_t = tl.where(is_row_t, spoiled, spoiled_t)

    slot_k = tl.arange(0, BLOCK_K)
    real_tk = tl.broadcast_to((slot_k < K)[None, :], (BLOCK_T, BLOCK_K))
    wanted_tk = seen_t[:, None] & real_tk
    expert_tk = tl.where(wanted_tk, place_tk // BLOCK_S * GROUP_SIZE + place_tk % BLOCK_S, -1)
    chosen_ptr_tk = logits_ptr + token_t[:, None] * stride_t + expert_tk.to(tl.int64) * stride_e
    chosen_tk = widened(tl.load(chosen_ptr_tk, mask=wanted_tk, other=0.0), tl.float32)
    chosen_tk = tl.where(spoiled_t[:, None] > 0, float("nan"), chosen_tk)
    greatest_t = tl.full((BLOCK_T,), 0.0, tl.float64)
    log_total_t = greatest_t
    if WITH_LOGSUMEXP or WEIGHT_SCORE == "softmax":
        greatest_t, log_total_t = greatest_and_log_total(z_te, tl.broadcast_to(real_e[None, :], z_te.shape))
    shifted_tk = chosen_tk.to(tl.float64)
    if WEIGHT_SCORE == "softmax":
        # Not by the logsumexp, in which a greatest logit of 1e17 swallows the total.
        shifted_tk -= greatest_t[:, None]
    weights_tk = weights_of(shifted_tk, log_total_t, real_tk, WEIGHT_SCORE, RENORMALIZE, EPS)

    out_tk = token_t[:, None] * K + slot_k[None, :]
    stored_tk = here_t[:, None] & real_tk
    tl.store(index_ptr + out_tk, expert_tk, mask=stored_tk)
    # The scale may be infinite, and 0 times that is NaN.
    tl.store(weights_ptr + out_tk, tl.where(wanted_tk, weights_tk * scale, 0.0), mask=stored_tk)
    if WITH_CHOSEN:
        tl.store(chosen_ptr + out_tk, chosen_tk, mask=stored_tk)
    if WITH_LOGSUMEXP:
        tl.store(logsumexp_ptr + token_t, tl.where(seen_t, greatest_t + log_total_t, 0.0), mask=here_t)
    if WITH_COUNTS:
        tl.atomic_add(counts_ptr + expert_tk, 1, mask=wanted_tk, sem="relaxed")
