"""Two traces as data for the page: where they agree, which tokens part, and how the loads differ."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moegate.report.packing import pack_ratios
from moegate.report.traces.detail import Detail
from moegate.report.traces.figures import as_lines, fair_ratio
from moegate.report.traces.names import layer_labels
from moegate.report.traces.views import Decode, Rows, token_texts
from moegate.trace import LayerStatistics, Loads, Trace, layer_table, margins

__all__ = ["Comparison", "Meeting", "compare"]

Counts = npt.NDArray[np.int64]
CHUNK = 16384


@dataclass(frozen=True, eq=False)
class Meeting:
    """What two traces of the same tokens have in common, row by row."""

    missing_TL: Counts  # experts of the first that the second does not have
    slots_TL: Counts  # experts of the first; 0 for a token that the layer did not see

    @property
    def seen_TL(self) -> npt.NDArray[np.bool_]:
        """Tokens that a layer saw."""
        return self.slots_TL > 0

    @property
    def first_T(self) -> Counts:
        """The first layer that sends a token elsewhere; -1 where all agree."""
        differs_TL = self.missing_TL > 0
        return np.where(differs_TL.any(axis=1), differs_TL.argmax(axis=1), -1)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two traces; ``meeting`` is None where they can't be compared token by token, and ``apart`` says why."""

    trace: Trace | Loads
    other: Trace | Loads
    names: tuple[str, str]
    decode: Decode | None
    table: list[LayerStatistics]  # of the other
    meeting: Meeting | None
    apart: str

    def differs(self, rows: Rows) -> Counts:
        """``[L, T]``: how many experts of each of these rows the other trace does not have."""
        assert self.meeting is not None
        return self.meeting.missing_TL[rows].T

    def findings(self) -> list[str]:
        """The comparison in sentences."""
        if self.meeting is None:
            return [self.apart]
        labels, parted_T = layer_labels(self.trace.layers), self.meeting.first_T
        seen = int(self.meeting.seen_TL.any(axis=1).sum())
        agreement_L = _shares(self.meeting.slots_TL - self.meeting.missing_TL, self.meeting.slots_TL)
        parted = int((parted_T >= 0).sum())
        if not parted:
            return [f"Both traces send all {seen:,} tokens to the same experts in every layer."]
        lowest = int(np.nanargmin(agreement_L))
        return [
            f"{parted:,} of {seen:,} tokens ({100 * parted / max(seen, 1):.1f} %) go to other experts in "
            f"“{self.names[1]}” in at least one layer; the first to differ is layer "
            f"{labels[int(parted_T[parted_T >= 0].min())]}.",
            f"The traces agree least in layer {labels[lowest]}: {100 * agreement_L[lowest]:.1f} % of the experts are "
            f"the same; over all layers it is {100 * float(np.nanmean(agreement_L)):.1f} %.",
        ]

    def content(self, detail: Detail) -> dict[str, Any]:
        """The comparison as data for the page."""
        content: dict[str, Any] = {
            "names": list(self.names),
            "titles": [_title(self.trace), _title(self.other)],
            "load": pack_ratios(fair_ratio(self.other.load.double().numpy(), self.other.num_experts), np.uint16),
            "table": as_lines(self.table),
            "apart": self.apart,
        }
        if self.meeting is None:
            return content
        meeting, parted_T = self.meeting, self.meeting.first_T
        seen_L, seen = meeting.seen_TL.sum(axis=0), int(meeting.seen_TL.any(axis=1).sum())
        same_TL = meeting.seen_TL & (meeting.missing_TL == 0)
        first_L = np.bincount(parted_T[parted_T >= 0], minlength=self.trace.num_layers)
        return content | {
            "tokens": seen,
            "agreement": _plain(_shares(meeting.slots_TL - meeting.missing_TL, meeting.slots_TL)),
            "identical": _plain(same_TL.sum(axis=0) / seen_L.clip(min=1)),
            "first": _plain(first_L / max(seen, 1)),
            "parted": int((parted_T >= 0).sum()),
            "parting": self._parting(parted_T, detail.parting_tokens),
        }

    def _parting(self, parted_T: Counts, at_most: int) -> list[dict[str, Any]]:
        """The tokens that part in the lowest layers, by the smallest margin, in that order."""
        assert isinstance(self.trace, Trace) and isinstance(self.other, Trace)
        rows = np.flatnonzero(parted_T >= 0)
        margins = self._margins(rows, parted_T[rows])
        order = np.lexsort((rows, np.nan_to_num(margins, nan=np.inf), parted_T[rows]))[:at_most]
        rows, margins = rows[order], margins[order]
        texts = token_texts(self.trace, rows, self.decode)
        parting = []
        for row, text, margin in zip(rows.tolist(), texts, margins.tolist(), strict=True):
            layer = int(parted_T[row])
            here, there = _experts(self.trace, row, layer), _experts(self.other, row, layer)
            parting.append(
                {
                    "row": row,
                    "text": text,
                    "layer": layer,
                    "margin": None if np.isnan(margin) else float(f"{margin:.4g}"),
                    "here": sorted(here - there),
                    "there": sorted(there - here),
                }
            )
        return parting

    def _margins(self, rows: Rows, layer_R: Counts) -> npt.NDArray[np.float64]:
        """The gap at the edge of the selection, in the layer where each row parts; NaN without logits."""
        assert isinstance(self.trace, Trace)
        if self.trace.logits is None or not len(rows):
            return np.full(len(rows), np.nan)
        found = np.full(len(rows), np.nan)
        for layer in np.unique(layer_R):
            here = np.zeros(self.trace.num_tokens, bool)
            here[rows[layer_R == layer]] = True
            found[layer_R == layer] = margins(self.trace.select(tokens=torch.from_numpy(here)), int(layer)).numpy()
        return found


def compare(trace: Trace | Loads, other: Trace | Loads, names: tuple[str, str], decode: Decode | None) -> Comparison:
    """Compares two traces, token by token where they are of the same tokens.

    Raises:
        ValueError: they have other layers or experts.
    """
    if trace.num_experts != other.num_experts:
        raise ValueError(
            f"The traces have {_shape(trace)} and {_shape(other)}; only traces of one model's layers can be compared."
        )
    apart = _apart(trace, other)
    meeting = None if apart else _meeting(trace, other)
    return Comparison(trace, other, names, decode, layer_table(other), meeting, apart)


def _experts(trace: Trace, row: int, layer: int) -> set[int]:
    """The experts of one token in one layer."""
    return {int(expert) for expert in trace.indices[row, layer] if expert >= 0}


def _shape(trace: Trace | Loads) -> str:
    experts = sorted(set(trace.num_experts))
    return f"{trace.num_layers} layers of {' and '.join(map(str, experts))} experts"


def _apart(trace: Trace | Loads, other: Trace | Loads) -> str:
    """Why the traces can't be compared token by token; empty where they can."""
    if isinstance(trace, Loads) or isinstance(other, Loads):
        return "Only the loads are compared: there are no tokens in a trace of counts."
    if trace.num_tokens != other.num_tokens:
        sizes = f"{trace.num_tokens:,} and {other.num_tokens:,}"
        return f"Only the loads are compared: the traces have different numbers of tokens, {sizes}."
    if trace.token_ids is not None and other.token_ids is not None:
        real_T = (trace.token_mask & other.token_mask).numpy()
        different = int((trace.token_ids.numpy() != other.token_ids.numpy())[real_T].sum())
        if different:
            return f"Only the loads are compared: {different:,} of {trace.num_tokens:,} tokens are not the same."
    return ""


def _meeting(trace: Trace, other: Trace) -> Meeting:
    missing_TL = np.zeros((trace.num_tokens, trace.num_layers), np.int64)
    for start in range(0, trace.num_tokens, CHUNK):
        rows = slice(start, start + CHUNK)
        here_TLK, there_TLK = trace.indices[rows].numpy(), other.indices[rows].numpy()
        found_TLK = np.zeros(here_TLK.shape, bool)
        for slot in range(there_TLK.shape[2]):
            found_TLK |= here_TLK == there_TLK[:, :, slot, None]
        missing_TL[rows] = ((here_TLK >= 0) & ~found_TLK).sum(axis=2)
    return Meeting(missing_TL, (trace.indices >= 0).sum(dim=2).numpy())


def _shares(part_TL: Counts, whole_TL: Counts) -> npt.NDArray[np.float64]:
    """Sums over the tokens, one as a share of the other; NaN in a layer without any."""
    whole_L = whole_TL.sum(axis=0)
    return np.where(whole_L > 0, part_TL.sum(axis=0) / whole_L.clip(min=1), np.nan)


def _plain(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(f"{value:.6g}") for value in values.tolist()]


def _title(trace: Trace | Loads) -> str:
    known = [str(trace.metadata[name]) for name in ("model", "source") if trace.metadata.get(name)]
    tokens = f"{int(trace.token_mask.sum()):,} tokens" if isinstance(trace, Trace) else "counts only"
    return " · ".join([*known, tokens])
