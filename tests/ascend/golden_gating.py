"""What the gating operators must give, in NumPy, from the published definitions and from nothing of moegate's.

Scores are computed in float64 and rounded once to float32; selection is float32 arithmetic on them; weights are
computed in float64 and rounded where the operators round: to float32 after the division, and again after the scale.

No two machines agree on the last bit of ``exp``. So a selection counts as certain only where it stays the same for
scores that are up to ``SLACK`` ulp apart from these; ``certain`` says for which rows it does.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

SLACK = 4


class Gate(NamedTuple):
    """``y`` float32 before the last cast, ``index``, ``out`` float32, and which rows can have no other index."""

    y: Floats
    index: Indices
    out: Floats
    certain: NDArray[np.bool_]


def scores_of(x: Floats, norm_type: int) -> Array:
    """The scores in float64: softmax, sigmoid, square root of softplus."""
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if norm_type == 0:
            shifted = np.exp(wide - wide.max(axis=-1, keepdims=True))
            return shifted / shifted.sum(axis=-1, keepdims=True)
        if norm_type == 1:
            return 1.0 / (1.0 + np.exp(-wide))
        return np.sqrt(np.logaddexp(0.0, wide))


def float32_scores_of(x: Floats, norm_type: int) -> Floats:
    """The scores as the operators hold them: a softmax starts with the float32 difference to the maximum."""
    if norm_type != 0:
        return scores_of(x, norm_type).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return scores_of(x - x.max(axis=-1, keepdims=True), 0).astype(np.float32)


def stable_descending(values: Floats) -> Indices:
    """Greatest first, ties to the lowest index."""
    return np.argsort(-values, axis=-1, kind="stable")


def two_greatest(values: Floats) -> Floats:
    """The sum of the two greatest of the last dimension, one float32 addition."""
    ordered = -np.sort(-values, axis=-1)
    return ordered[..., 0] + ordered[..., 1]


def kept_groups(
    selection: Floats, k_group: int, group_count: int, group_select_mode: int
) -> tuple[NDArray[np.bool_], Floats]:
    """``[T, E]``, whether an expert's group is kept; ``[T, G]``, the groups' scores."""
    grouped = selection.reshape(len(selection), group_count, -1)
    score = grouped.max(axis=-1) if group_select_mode == 0 else two_greatest(grouped)
    kept = np.zeros(score.shape, dtype=bool)
    np.put_along_axis(kept, stable_descending(score)[:, :k_group], True, axis=-1)
    return np.repeat(kept, grouped.shape[-1], axis=-1), score


def greatest_of_kept(selection: Floats, kept: NDArray[np.bool_], k: int) -> Indices:
    """The ``k`` greatest among the kept experts only, even where those are -inf."""
    rows = []
    for row, mask in zip(selection, kept, strict=True):
        members = np.flatnonzero(mask)
        rows.append(members[stable_descending(row[members])[:k]])
    return np.array(rows, dtype=np.int64).reshape(len(selection), k)


def selection_of(x: Floats, bias: Floats | None, norm_type: int) -> tuple[Floats, Floats, Floats]:
    """The scores to select by, and the least and the greatest that rounding may make of them."""
    p = float32_scores_of(x, norm_type)
    ulp = np.spacing(np.abs(p))
    low, high = np.maximum(p - SLACK * ulp, np.float32(0.0)), p + SLACK * ulp
    if norm_type < 2:
        high = np.minimum(high, np.float32(1.0))
    # Where the function is flat, every implementation gives the same.
    low[p == 0], high[p == 0] = 0.0, 0.0
    low[(norm_type == 1) & (x >= 20)] = 1.0
    added = np.float32(0.0) if bias is None else bias
    return p + added, low + added, high + added


def normalised(chosen: Array, eps: float | None, scale: float) -> Floats:
    """Divide by the sum plus eps, unless that is None, and round; scale, and round again. Attributes are float32."""
    if eps is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            chosen = chosen / (chosen.sum(axis=-1, keepdims=True) + np.float64(np.float32(eps)))
    return chosen.astype(np.float32) * np.float32(scale)


def moe_gating_top_k(
    x: Floats,
    k: int,
    *,
    bias: Floats | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> Gate:
    """MoeGatingTopK without its hash mode."""
    p = scores_of(x, norm_type)
    selection, low, high = selection_of(x, bias, norm_type)
    kept = np.ones(x.shape, dtype=bool)
    certain = np.ones(len(x), dtype=bool)
    if group_count > 1 and k_group < group_count:
        kept, group = kept_groups(selection, k_group, group_count, group_select_mode)
        keys = group_keys(x, bias, selection, group_count, 1 if group_select_mode == 0 else 2)
        bounds = [kept_groups(bound, k_group, group_count, group_select_mode)[1] for bound in (low, high)]
        certain &= ordered_for_certain(group, bounds[0], bounds[1], keys, k_group)
    index = greatest_of_kept(selection, kept, k)
    masked = [np.where(kept, values, np.float32(-np.inf)) for values in (selection, low, high)]
    certain &= ordered_for_certain(masked[0], masked[1], masked[2], expert_keys(x, bias), k)
    normalise = norm_type > 0 or renorm == 1
    chosen = np.take_along_axis(p, index, axis=-1)
    y = normalised(chosen, eps if normalise else None, routed_scaling_factor)
    return Gate(y, index, float32_scores_of(x, norm_type), certain)


def by_hash(
    x: Floats,
    index: Indices,
    *,
    renorm: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> Floats:
    """The weights of MoeGatingTopK's hash mode, whose experts are looked up."""
    chosen = np.take_along_axis(scores_of(x, norm_type), index, axis=-1)
    return normalised(chosen, eps if norm_type > 0 or renorm == 1 else None, routed_scaling_factor)


def moe_gating_top_k_softmax(x: Floats, k: int, *, renorm: int = 0) -> Gate:
    """MoeGatingTopKSoftmax in both versions, for rows ``[N, E]``."""
    p = scores_of(x, 0)
    if renorm == 0:
        gate = moe_gating_top_k(x, k)
        return gate._replace(y=np.take_along_axis(p, gate.index, axis=-1).astype(np.float32))
    index = stable_descending(x)[:, :k]
    y = scores_of(np.take_along_axis(x, index, axis=-1), 0).astype(np.float32)
    return Gate(y, index, p.astype(np.float32), np.ones(len(x), dtype=bool))


def row_idx(num_rows: int, k: int) -> Indices:
    """The slots numbered column by column."""
    return np.arange(num_rows * k).reshape(k, num_rows).T


def moe_fused_topk(
    x: Floats,
    add_num: Floats,
    *,
    group_num: int,
    group_topk: int,
    top_n: int,
    top_k: int,
    is_norm: bool,
    scale: float,
) -> Gate:
    """MoeFusedTopk without its mapping."""
    selection, low, high = selection_of(x, add_num, 1)

    def group_scores(values: Floats) -> Floats:
        grouped = -np.sort(-values.reshape(len(values), group_num, -1), axis=-1)
        return grouped[..., :top_n].astype(np.float64).sum(axis=-1).astype(np.float32)

    group = group_scores(selection)
    kept = np.zeros(group.shape, dtype=bool)
    np.put_along_axis(kept, stable_descending(group)[:, :group_topk], True, axis=-1)
    keys = group_keys(x, add_num, selection, group_num, top_n)
    certain = ordered_for_certain(group, group_scores(low), group_scores(high), keys, group_topk)
    mask = np.repeat(kept, x.shape[1] // group_num, axis=-1)
    masked = [np.where(mask, values, np.float32(0.0)) for values in (selection, low, high)]
    index = stable_descending(masked[0])[:, :top_k]
    experts = np.where(mask[..., None], expert_keys(x, add_num), np.float32(0.0))
    certain &= ordered_for_certain(masked[0], masked[1], masked[2], experts, top_k)
    chosen = np.take_along_axis(scores_of(x, 1), index, axis=-1)
    y = normalised(chosen, 0.0, scale) if is_norm else chosen.astype(np.float32)
    return Gate(y, index, scores_of(x, 1).astype(np.float32), certain)


def expert_keys(x: Floats, bias: Floats | None) -> Floats:
    """``[T, E, 2]``: experts with the same key have the same score in every implementation."""
    return np.stack([x, np.broadcast_to(np.float32(0.0) if bias is None else bias, x.shape)], axis=-1)


def group_keys(x: Floats, bias: Floats | None, selection: Floats, group_count: int, taken: int) -> Floats:
    """``[T, G, 2 · taken]``: the keys of the experts that a group's score is made of."""
    num_rows = len(x)
    order = stable_descending(selection.reshape(num_rows, group_count, -1))[..., :taken, None]
    keys = expert_keys(x, bias).reshape(num_rows, group_count, -1, 2)
    return np.take_along_axis(keys, order, axis=2).reshape(num_rows, group_count, -1)


def ordered_for_certain(values: Floats, low: Floats, high: Floats, keys: Floats, count: int) -> NDArray[np.bool_]:
    """Rows whose first ``count`` stay the same, in order, wherever between ``low`` and ``high`` the values are."""
    certain = np.ones(len(values), dtype=bool)
    for row, order in enumerate(stable_descending(values)):
        for place, first in enumerate(order[:count]):
            # Those before the last are compared with their successor; the last with all that are left out.
            for other in order[place + 1 :] if place == count - 1 else [order[place + 1]]:
                apart = low[row, first] > high[row, other]
                same = np.array_equal(keys[row, first], keys[row, other])
                exact = low[row, first] == high[row, first] == low[row, other] == high[row, other]
                if not (apart or ((same or exact) and first < other)):
                    certain[row] = False
    return certain
