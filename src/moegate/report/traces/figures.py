"""What the page counts in a trace beyond its loads: assignments by the tokens' place, phase and position."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moegate.trace import PHASES, LayerStatistics, Trace, coactivation

__all__ = [
    "Bins",
    "as_lines",
    "fair_ratio",
    "load_by",
    "over_phases",
    "over_positions",
    "over_recording",
    "pair_counts",
    "short",
]

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Bins(NamedTuple):
    """Assignments in groups of tokens, ``[W, L, E]``, and the groups' names on an axis and in words."""

    names: tuple[str, ...]
    words: tuple[str, ...]
    load_WLE: Counts


def load_by(trace: Trace, group_T: Counts, groups: int) -> Counts:
    """``[groups, L, E]``: assignments by the group of the token, a group of -1 counted nowhere."""
    width = max(trace.num_experts, default=0)
    kept_T = group_T >= 0
    indices_TLK = trace.indices.numpy()
    load = np.zeros((groups, trace.num_layers, width), np.int64)
    offset_T1 = (group_T[kept_T] * (width + 1))[:, None]
    for layer in range(trace.num_layers):
        # An empty slot, -1, is counted in a column of its own, which is then left out.
        cells = (offset_T1 + 1 + indices_TLK[kept_T, layer]).reshape(-1)
        counted = np.bincount(cells, minlength=groups * (width + 1)).reshape(groups, width + 1)
        load[:, layer] = counted[:, 1:]
    return load


def fair_ratio(load: npt.NDArray[Any], num_experts: Sequence[int]) -> Array:
    """``[..., L, E]``: load over the mean load of a layer's own experts; 1 is a fair share."""
    fair = load.sum(axis=-1, keepdims=True) / np.array(num_experts, dtype=np.float64)[:, None].clip(min=1)
    ratio: Array = load / fair.clip(min=1e-12)
    return ratio


def over_recording(trace: Trace, windows: int) -> Bins:
    """Equal parts of the recording, in the order of the tokens."""
    real_T = trace.token_mask.numpy()
    total = int(real_T.sum())
    windows = max(1, min(windows, total))
    place_T = np.cumsum(real_T) - 1
    group_T = np.where(real_T, place_T * windows // max(total, 1), -1)
    edges = [-(-number * total // windows) for number in range(windows + 1)]
    words = [f"Tokens {first:,} to {last - 1:,}" for first, last in pairwise(edges)]
    return Bins(tuple(map(str, edges[:-1])), tuple(words), load_by(trace, group_T, windows))


def over_positions(trace: Trace) -> Bins | None:
    """Positions in the document: 0, 1, 2 to 3, 4 to 7, ...; None without documents of several tokens."""
    position_T = positions(trace)
    if position_T is None or position_T.max(initial=-1) < 1:
        return None
    # 0 -> 0, 1 -> 1, 2 and 3 -> 2, 4 to 7 -> 3: the group of a position is the length of its binary number.
    group_T = np.where(position_T < 0, -1, np.frexp(position_T.clip(0))[1])
    groups = int(group_T.max()) + 1
    starts = [0, *(2**number for number in range(groups - 1))]
    ends = [*(start - 1 for start in starts[1:]), int(position_T.max())]
    words = [
        f"Position {first:,}" if first == last else f"Positions {first:,} to {last:,}"
        for first, last in zip(starts, ends, strict=True)
    ]
    return Bins(tuple(map(str, starts)), tuple(words), load_by(trace, group_T, groups))


def over_phases(trace: Trace) -> Bins | None:
    """Prefill and decoding apart; None where there is one phase only."""
    if trace.phases is None:
        return None
    real_T = trace.token_mask.numpy()
    phase_T = trace.phases.numpy().astype(np.int64)
    found = [number for number in range(len(PHASES)) if (real_T & (phase_T == number)).any()]
    if len(found) < 2:
        return None
    group_T = np.full(trace.num_tokens, -1)
    for group, number in enumerate(found):
        group_T[real_T & (phase_T == number)] = group
    names = tuple(PHASES[number] for number in found)
    return Bins(names, tuple(name.capitalize() for name in names), load_by(trace, group_T, len(found)))


def positions(trace: Trace) -> Counts | None:
    """``[T]``: the place of each token in its document, -1 for padded ones; None without documents."""
    if trace.document_ids is None:
        return None
    document_T = trace.document_ids.numpy().astype(np.int64)
    known_T = trace.token_mask.numpy() & (document_T >= 0)
    rows = np.flatnonzero(known_T)
    order = rows[np.argsort(document_T[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(document_T[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    position_T = np.full(trace.num_tokens, -1, np.int64)
    position_T[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return position_T


def pair_counts(trace: Trace) -> Counts:
    """``[L, E, E]``: tokens that went to both experts, symmetric; 0 on the diagonal."""
    width = max(trace.num_experts, default=0)
    counts = np.zeros((trace.num_layers, width, width), np.int64)
    for layer, num_experts in enumerate(trace.num_experts):
        counts[layer, :num_experts, :num_experts] = coactivation(trace, layer).fill_diagonal_(0).numpy()
    return counts


def as_lines(table: Sequence[LayerStatistics], nmi: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """The table of layers as JSON values to six figures, with the information about the domain where it is known."""
    lines = []
    for layer, row in enumerate(table):
        line = row.to_dict() | {"nmi": None if nmi is None else nmi[layer]}
        lines.append({name: short(value) for name, value in line.items()})
    return lines


def short(value: Any) -> Any:
    """A number to six figures, None where it is not finite; any other value as it is."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
