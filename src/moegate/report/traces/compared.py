"""Two traces as data for the page: where they agree, which tokens part, and how the loads differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moegate.report.packing import pack_ratios
from moegate.report.traces.detail import LEVELS, Detail
from moegate.report.traces.figures import as_lines, fair_ratio, short
from moegate.report.traces.views import Decode, Rows, token_texts
from moegate.trace import Difference, LayerStatistics, Loads, Trace, diff, layer_table, margins
from moegate.trace.alignment import align
from moegate.trace.difference import TokenDifference

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two traces; ``difference`` is None where they can't be compared token by token, and ``apart`` says why."""

    trace: Trace | Loads
    other: Trace | Loads
    names: tuple[str, str]
    decode: Decode | None
    table: Sequence[LayerStatistics]  # of the other
    difference: Difference | None
    apart: str
    common_prefix: bool = False

    def findings(self) -> list[str]:
        """The comparison in sentences."""
        if self.difference is None:
            return [self.apart]
        return [f"Against “{self.names[1]}”: {self.difference.verdict}", *self.difference.notes]

    def content(self, detail: Detail) -> dict[str, Any]:
        """The comparison as data for the page."""
        content: dict[str, Any] = {
            "names": list(self.names),
            "titles": [_title(self.trace), _title(self.other)],
            "load": pack_ratios(fair_ratio(self.other.load.double().numpy(), self.other.num_experts), np.uint16),
            "table": as_lines(self.table),
            "apart": self.apart,
        }
        if self.difference is None:
            return content
        layers, tokens = self.difference.layers, self.difference.tokens
        return content | {
            "tokens": tokens,
            "agreement": [short(layer.agreement) for layer in layers],
            "exact": [short(layer.exact) for layer in layers],
            "first": [short(layer.first / max(tokens, 1)) for layer in layers],
            "moved": [short(layer.weight_moved) for layer in layers],
            "margin_same": [short(layer.margin_same) for layer in layers],
            "margin_parted": [short(layer.margin_parted) for layer in layers],
            "parted": round(self.difference.tokens_differing * tokens) if tokens else 0,
            "parting": self._parting(self.difference.extremes[: detail.parting_tokens]),
        }

    def _parting(self, extremes: Sequence[TokenDifference]) -> list[dict[str, Any]]:
        """Each of these tokens where it parts first: the experts of both traces, and by what margin."""
        assert isinstance(self.trace, Trace) and isinstance(self.other, Trace)
        texts = token_texts(self.trace, np.array([token.row for token in extremes], np.int64), self.decode)
        layers = [self.trace.layers.index(token.first_layer) for token in extremes]
        margin = self._margins([token.row for token in extremes], layers)
        parting = []
        for number, (token, layer) in enumerate(zip(extremes, layers, strict=True)):
            here, there = _experts(self.trace, token.row, layer), _experts(self.other, token.other_row, layer)
            parting.append(
                {
                    "row": token.row,
                    "text": texts[number],
                    "layer": layer,
                    "layers": token.layers_differing,
                    "agreement": short(token.agreement),
                    "margin": short(margin[number]),
                    "here": sorted(here - there),
                    "there": sorted(there - here),
                }
            )
        return parting

    def _margins(self, rows: Sequence[int], layers: Sequence[int]) -> list[float | None]:
        """The gap at the edge of the choice of each row, in one layer each; None without logits."""
        assert isinstance(self.trace, Trace)
        if self.trace.logits is None or not rows:
            return [None] * len(rows)
        kept, place = np.unique(rows, return_inverse=True)
        mask_T = torch.zeros(self.trace.num_tokens, dtype=torch.bool)
        mask_T[torch.from_numpy(kept)] = True
        part = self.trace.select(tokens=mask_T)
        of_layer = {layer: margins(part, layer) for layer in set(layers)}
        return [of_layer[layer][at].item() for layer, at in zip(layers, place.tolist(), strict=True)]

    def unshared(self, rows: Rows) -> npt.NDArray[np.int64]:
        """``[L, T]``: how many experts of each of these rows the other trace does not have; 0 for rows not compared."""
        assert isinstance(self.trace, Trace) and isinstance(self.other, Trace)
        pairs = align(self.trace, self.other, common_prefix=self.common_prefix)
        other_row = np.full(self.trace.num_tokens, -1, np.int64)
        other_row[pairs.first.numpy()] = pairs.second.numpy()
        here_TLK = self.trace.indices[rows].numpy().astype(np.int64)
        there_TLK = self.other.indices[other_row[rows].clip(0)].numpy().astype(np.int64)
        found_TLK = (here_TLK[..., None] == there_TLK[:, :, None, :]).any(axis=3)
        seen_TL1 = ((there_TLK >= 0).any(axis=2) & (other_row[rows] >= 0)[:, None])[..., None]
        count: npt.NDArray[np.int64] = ((here_TLK >= 0) & ~found_TLK & seen_TL1).sum(axis=2).T
        return count


def compare(
    trace: Trace | Loads,
    other: Trace | Loads,
    names: tuple[str, str],
    decode: Decode | None,
    *,
    common_prefix: bool = False,
) -> Comparison:
    """Compares two traces, token by token where they are of the same tokens, or up to where their sequences part.

    Raises:
        ValueError: they have other layers or experts.
    """
    if trace.num_experts != other.num_experts:
        raise ValueError(
            f"The traces have {_shape(trace)} and {_shape(other)}; only traces of the same layers can be compared."
        )
    difference, apart = None, ""
    if isinstance(trace, Loads) or isinstance(other, Loads):
        apart = "Only the loads are compared: there are no tokens in a trace of counts."
    elif not trace.num_layers:
        apart = "There is nothing to compare: the traces have no layers."
    else:
        try:
            difference = diff(trace, other, common_prefix=common_prefix, extremes=LEVELS[0].parting_tokens)
        except ValueError as error:
            apart = f"Only the loads are compared. {error}"
    return Comparison(trace, other, names, decode, layer_table(other), difference, apart, common_prefix)


def _shape(trace: Trace | Loads) -> str:
    experts = sorted(set(trace.num_experts))
    return f"{trace.num_layers} layers of {' and '.join(map(str, experts))} experts"


def _experts(trace: Trace, row: int, layer: int) -> set[int]:
    """The experts of one token in one layer."""
    return {int(expert) for expert in trace.indices[row, layer] if expert >= 0}


def _title(trace: Trace | Loads) -> str:
    known = [str(trace.metadata[name]) for name in ("model", "source") if trace.metadata.get(name)]
    tokens = f"{int(trace.token_mask.sum()):,} tokens" if isinstance(trace, Trace) else "counts only"
    return " · ".join([*known, tokens])
