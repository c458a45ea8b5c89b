"""What the operators that move rows must give, from the specification, by NumPy and loops.

Nothing here imports moegate. Sums are made in the type of the rows that are passed: float32 gives the device's
arithmetic, float64 the exact answer to measure against.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


# --- MoeInitRouting, its third version, MoeComputeExpertTokens --------------------------------------------------------


def init_routing(x: Array, row_idx: Array, expert_idx: Array, active_num: int) -> tuple[Array, Array, Array]:
    """Section 4, V1: a stable sort of the expert ids that carries row_idx; active_num counts tokens."""
    num_tokens, top_k = expert_idx.shape
    order = np.argsort(expert_idx.reshape(-1), kind="stable")
    sorted_row = row_idx.reshape(-1)[order]
    places = np.full(num_tokens * top_k, -1, np.int32)
    for position, row in enumerate(sorted_row):
        places[row] = position
    taken = sorted_row[: min(active_num, num_tokens) * top_k]
    rows = np.stack([x[row % num_tokens] for row in taken]) if len(taken) else x[:0]
    return rows, places, np.sort(expert_idx.reshape(-1), kind="stable")


def sorted_slots(expert_idx: Array, start: int, end: int) -> tuple[Array, int]:
    """Section 4, V3: ids below the range are rewritten to the greatest int32, those above sort last already."""
    flat = expert_idx.reshape(-1).astype(np.int64)
    flat = np.where(flat < start, np.iinfo(np.int32).max, flat)
    return np.argsort(flat, kind="stable"), int(((flat >= start) & (flat < end)).sum())


def counts(expert_idx: Array, start: int, end: int, expert_num: int, kind: int) -> Array:
    """0 cumsum, 1 count, 2 pairs of the experts that have rows, packed at the head, then zeros."""
    per_expert = [int((expert_idx == expert).sum()) for expert in range(start, end)]
    if kind == 0:
        return np.cumsum(per_expert).astype(np.int64)
    if kind == 1:
        return np.array(per_expert, np.int64)
    pairs = [(start + number, count) for number, count in enumerate(per_expert) if count]
    return np.array(pairs + [(0, 0)] * (expert_num - len(pairs)), np.int64).reshape(expert_num, 2)


def init_routing_dropless(
    x: Array, expert_idx: Array, start: int, end: int, active_num: int, scatter: bool
) -> tuple[Array, Array, Array, Array]:
    """Rows, row index, and of each row that is there: the token and the expert (counted from the start)."""
    top_k = expert_idx.shape[1]
    order, active = sorted_slots(expert_idx, start, end)
    num_slots = expert_idx.size
    num_rows = num_slots if active_num <= 0 else min(active_num, num_slots)
    there = order[: min(num_rows, active)]
    rows = np.zeros((num_rows, x.shape[1]), x.dtype)
    for position, slot in enumerate(there):
        rows[position] = x[slot // top_k]
    index = np.full(num_slots, -1, np.int32)
    if scatter:
        index[:active] = order[:active]
    else:
        for position in range(active):
            index[order[position]] = position
    return rows, index, there // top_k, expert_idx.reshape(-1)[there] - start


def init_routing_drop_pad(x: Array, expert_idx: Array, num_experts: int, capacity: int) -> tuple[Array, Array, Array]:
    """Rows ``[E, C, H]``, the place of each slot, and the token at each place (-1 for none)."""
    top_k = expert_idx.shape[1]
    rows = np.zeros((num_experts, capacity, x.shape[1]), x.dtype)
    index = np.full(expert_idx.size, -1, np.int32)
    token = np.full(num_experts * capacity, -1)
    taken = [0] * num_experts
    for slot, expert in enumerate(expert_idx.reshape(-1)):
        if not 0 <= expert < num_experts or taken[expert] == capacity:
            continue
        place = expert * capacity + taken[expert]
        rows[expert, taken[expert]] = x[slot // top_k]
        index[slot], token[place] = place, slot // top_k
        taken[expert] += 1
    return rows, index, token


def static_int8(rows: Array, scale: float, offset: float) -> Array:
    """``round(x · scale + offset)``, each step in float16, clamped; NaN is 0 here."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = rows.astype(np.float16) * np.float16(scale) + np.float16(offset)
        return np.nan_to_num(np.clip(np.rint(half), -128, 127), nan=0.0).astype(np.int8)


def dynamic_int8(row: Array, smooth: Array | None) -> tuple[Array, np.float32]:
    """One row, in float32: ``scale = max|x · smooth| / 127``, ``round(x · smooth / scale)``; a zero row is 0 here."""
    values = row.astype(np.float32)
    if smooth is not None:
        values = values * smooth.astype(np.float32)
    scale = np.float32(np.abs(values).max(initial=0.0)) / np.float32(127)
    if scale == 0:
        return np.zeros(values.shape, np.int8), np.float32(0)
    return np.clip(np.rint(values / scale), -128, 127).astype(np.int8), scale


def compute_expert_tokens(sorted_experts: Array, num_experts: int) -> Array:
    """The index of the last element up to each expert, plus one."""
    return np.array([int((sorted_experts <= expert).sum()) for expert in range(num_experts)], np.int32)


# --- MoeFinalizeRouting -----------------------------------------------------------------------------------------------


def special_row(expert: int, token: Array, special: dict[str, Any]) -> Array | str | None:
    """What a special expert gives: "nothing", its row, or None for an expert that is none."""
    for kind in ("zero", "copy", "constant"):
        start, end = special.get(kind) or (0, 0)
        if not start <= expert < end:
            continue
        if kind == "zero":
            return "nothing"
        if kind == "copy":
            return token
        number = expert - start
        return special["alpha1"][number] * token + special["alpha2"][number] * special["v"][number]
    return None


def finalize_routing(
    rows: Array,
    skip1: Array | None,
    skip2: Array | None,
    bias: Array | None,
    scales: Array | None,
    index: Array,
    experts: Array | None,
    mode: int,
    k: int = 1,
    special: dict[str, Any] | None = None,
) -> Array:
    """Section 5, in the order of the formula, in the type of the rows."""
    rows = rows.reshape(int(np.prod(rows.shape[:-1])), rows.shape[-1])
    top_k = scales.shape[1] if scales is not None else k
    num_tokens = index.size // top_k
    out = np.zeros((num_tokens, rows.shape[1]), rows.dtype)
    for skip in (skip1, skip2):
        if skip is not None:
            out = out + skip.astype(rows.dtype)
    for i in range(num_tokens):
        for j in range(top_k):
            place = int(index[j * num_tokens + i] if mode in (0, 1) else index[i * top_k + j])
            expert = None if experts is None else int(experts[i, j])
            given = None
            if special and expert is not None:
                given = special_row(expert, special["x"][i] if "x" in special else rows[:0], special)
            if isinstance(given, str) or (given is None and place >= len(rows)):
                continue
            row = given if given is not None else (rows[place] if place >= 0 else np.zeros(rows.shape[1], rows.dtype))
            if bias is not None and expert is not None and 0 <= expert < len(bias):
                row = row + bias[expert].astype(rows.dtype)
            if scales is not None:
                row = row * scales[i, j].astype(rows.dtype)
            out[i] = out[i] + row
    return out


# --- token permute and unpermute, with a routing map ------------------------------------------------------------------


def token_permute(tokens: Array, indices: Array, num_out_tokens: int | None) -> tuple[Array, Array]:
    top_k = indices.shape[1] if indices.ndim == 2 else 1
    order = np.argsort(indices.reshape(-1), kind="stable")
    rows = [tokens[slot // top_k] for slot in order][: num_out_tokens or None]
    return np.array(rows, tokens.dtype).reshape(len(rows), tokens.shape[1]), np.argsort(order, kind="stable").astype(
        np.int32
    )


def token_unpermute(rows: Array, sorted_indices: Array, probs: Array | None) -> Array:
    top_k = 1 if probs is None else probs.shape[1]
    num_tokens = sorted_indices.size // top_k
    out = np.zeros((num_tokens, rows.shape[1]), rows.dtype)
    for slot, place in enumerate(sorted_indices):
        if 0 <= place < len(rows):
            factor = rows.dtype.type(1) if probs is None else probs.reshape(-1)[slot].astype(rows.dtype)
            out[slot // top_k] = out[slot // top_k] + rows[place] * factor
    return out


def permute_with_map(
    tokens: Array, routing_map: Array, probs: Array | None, num_out: int
) -> tuple[Array, Array | None, Array]:
    """Tokens expert by expert; slots of a token by ascending expert."""
    num_tokens, num_experts = routing_map.shape
    top_k = num_out // num_tokens if num_tokens else 0
    listed = [(t, e) for e in range(num_experts) for t in range(num_tokens) if routing_map[t, e]]
    rows = np.zeros((top_k * num_tokens, tokens.shape[1]), tokens.dtype)
    row_probs = None if probs is None else np.zeros(top_k * num_tokens, probs.dtype)
    index = np.full(top_k * num_tokens, -1, np.int32)
    used = [0] * num_tokens
    for place, (t, e) in enumerate(listed):
        rows[place] = tokens[t]
        if row_probs is not None and probs is not None:
            row_probs[place] = probs[t, e]
        index[t * top_k + used[t]] = place
        used[t] += 1
    return rows, row_probs, index


def permute_drop_and_pad(
    tokens: Array, routing_map: Array, probs: Array | None, num_out: int
) -> tuple[Array, Array | None, Array]:
    """Each expert's tokens in order, then the others in order; the first C of them."""
    num_tokens, num_experts = routing_map.shape
    capacity = num_out // num_experts
    ids, row_probs = [], []
    for e in range(num_experts):
        listed = [t for t in range(num_tokens) if routing_map[t, e]] + [
            t for t in range(num_tokens) if not routing_map[t, e]
        ]
        ids += listed[:capacity]
        row_probs += [0.0 if probs is None else probs[t, e] for t in listed[:capacity]]
    found = None if probs is None else np.array(row_probs, probs.dtype)
    return tokens[np.array(ids, np.int64)], found, np.array(ids, np.int32)


def unpermute_with_map(rows: Array, index: Array, num_tokens: int, probs: Array | None, routing_map: Array) -> Array:
    top_k = index.size // max(1, num_tokens)
    out = np.zeros((num_tokens, rows.shape[1]), rows.dtype)
    for t in range(num_tokens):
        experts = np.flatnonzero(routing_map[t])
        for j in range(top_k):
            place = index[t * top_k + j]
            if place >= 0:
                factor = rows.dtype.type(1) if probs is None else probs[t, experts[j]].astype(rows.dtype)
                out[t] = out[t] + rows[place] * factor
    return out


def unpermute_drop_and_pad(rows: Array, ids: Array, num_tokens: int, probs: Array | None) -> Array:
    out = np.zeros((num_tokens, rows.shape[1]), rows.dtype)
    capacity = 1 if probs is None else max(1, ids.size // probs.shape[1])
    for place, t in enumerate(ids):
        factor = rows.dtype.type(1) if probs is None else probs[t, place // capacity].astype(rows.dtype)
        out[t] = out[t] + rows[place] * factor
    return out


# --- MoeReRouting -----------------------------------------------------------------------------------------------------


def re_routing(counts_per_rank: Array) -> Array:
    """The source row of each row: block (rank, expert) moves to its place in (expert, rank) order."""
    num_ranks, num_experts = counts_per_rank.shape
    starts, at = {}, 0
    for rank in range(num_ranks):
        for expert in range(num_experts):
            starts[rank, expert] = at
            at += int(counts_per_rank[rank, expert])
    source = []
    for expert in range(num_experts):
        for rank in range(num_ranks):
            source += [starts[rank, expert] + n for n in range(int(counts_per_rank[rank, expert]))]
    return np.array(source, np.int64)


# --- MoeDistributeDispatch, Combine -----------------------------------------------------------------------------------


def dispatched(
    expert_ids: list[Array],
    moe_expert_num: int,
    shared_expert_num: int = 0,
    shared_expert_rank_num: int = 0,
    active: list[Array] | None = None,
) -> list[list[list[tuple[int, int, int]]]]:
    """For each rank and each of its experts: (source rank, token, slot) of the rows, by rank, then by slot.

    The slots of shared experts that have ranks of their own come behind those of ``expert_ids``.
    """
    world = len(expert_ids)
    per_rank = moe_expert_num // (world - shared_expert_rank_num)
    copies = shared_expert_rank_num // shared_expert_num if shared_expert_num and shared_expert_rank_num else 0
    held: list[list[list[tuple[int, int, int]]]] = [
        [[]] if rank < shared_expert_rank_num else [[] for _ in range(per_rank)] for rank in range(world)
    ]
    for source, ids in enumerate(expert_ids):
        num_tokens, top_k = ids.shape
        mask = (
            np.ones(ids.shape, bool)
            if active is None
            else np.broadcast_to(active[source] if active[source].ndim == 2 else active[source][:, None], ids.shape)
        )
        for t in range(num_tokens):
            for j in range(top_k):
                expert = int(ids[t, j])
                if mask[t, j] and expert < moe_expert_num:
                    rank = shared_expert_rank_num + expert // per_rank
                    held[rank][expert % per_rank].append((source, t, j))
            if copies and mask[t].any():
                for shared in range(shared_expert_num):
                    held[shared * copies + source % copies][0].append((source, t, top_k + shared))
    return held


def dispatch_int8(row: Array, smooth: Array | None) -> tuple[Array, np.float32]:
    """Section 8: ``int8(x · scales · (127 / max))`` and ``max / 127``; a zero row is 0 here."""
    values = row.astype(np.float32)
    if smooth is not None:
        values = values * smooth.astype(np.float32)
    greatest = np.float32(np.abs(values).max(initial=0.0))
    if greatest == 0:
        return np.zeros(values.shape, np.int8), np.float32(0)
    factor = np.float32(127) / greatest
    return np.clip(np.rint(values * factor), -128, 127).astype(np.int8), greatest / np.float32(127)


def combined(
    outputs: list[list[list[Array]]],
    held: list[list[list[tuple[int, int, int]]]],
    expert_ids: list[Array],
    scales: list[Array],
    source: int,
    empty: Array,
    special: dict[str, Any] | None = None,
    shared_x: Array | None = None,
    active: Array | None = None,
) -> Array:
    """Section 8 for one rank: its tokens' outputs, from what every rank's experts gave for the rows they held.

    Slots in order, then the shared experts that have ranks of their own, with the factor 1; ``empty`` is zeros of the
    outputs' shape and type.
    """
    found = {
        place: outputs[rank][expert][number]
        for rank, experts in enumerate(held)
        for expert, rows in enumerate(experts)
        for number, place in enumerate(rows)
    }
    ids, factors = expert_ids[source], scales[source]
    out, dtype = empty, empty.dtype
    for t in range(len(ids)):
        on = np.ones(ids.shape[1], bool) if active is None else np.broadcast_to(active[t], ids.shape[1])
        if shared_x is not None and on.any():
            out[t] = out[t] + shared_x[t].astype(dtype)
        for j in range(ids.shape[1]):
            given = special_row(int(ids[t, j]), special["x"][t], special) if special else None
            if not on[j] or isinstance(given, str):
                continue
            row = given if given is not None else found[source, t, j]
            out[t] = out[t] + row * factors[t, j].astype(dtype)
        for place in sorted(place for place in found if place[:2] == (source, t) and place[2] >= ids.shape[1]):
            out[t] = out[t] + found[place]
    return out
