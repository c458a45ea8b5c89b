"""The figures of each layer, and the pairs of its experts."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moegate.metrics import evenness
from moegate.metrics.specialization import domain_nmi
from moegate.trace.loads import Loads
from moegate.trace.trace import Trace

__all__ = ["LayerFigures", "layer_figures", "pair_counts"]

Counts = npt.NDArray[np.int64]
CHUNK = 8192


@dataclass(frozen=True)
class LayerFigures:
    """One line of the table of layers; None where the trace does not tell."""

    num_experts: int
    assignments: float
    lowest: float | None
    highest: float | None
    effective_experts: float | None
    dead: int
    max_violation: float | None
    entropy: float | None
    margin: float | None
    nmi: float | None
    hottest: tuple[tuple[int, float], ...]
    coldest: tuple[tuple[int, float], ...]

    def as_json(self) -> dict[str, Any]:
        """The line as JSON values, to six figures."""
        values = asdict(self)
        return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}


def layer_figures(trace: Trace | Loads, domain_load_NLE: Counts | None, best: int = 3) -> list[LayerFigures]:
    """The line of each layer."""
    load_LE = trace.load.to(torch.float64)
    rows = []
    for layer, num_experts in enumerate(trace.num_experts):
        nmi = None if domain_load_NLE is None else torch.from_numpy(domain_load_NLE[:, layer, :num_experts])
        margin = margin_of(trace, layer) if isinstance(trace, Trace) else None
        rows.append(_figures(load_LE[layer, :num_experts], best, margin, None if nmi is None else domain_nmi(nmi)))
    return rows


def _figures(load_E: Tensor, best: int, margin: float | None, nmi: float | None) -> LayerFigures:
    total = float(load_E.sum())
    ratio = load_E / load_E.mean() if total else torch.zeros_like(load_E)
    order = torch.argsort(-ratio, stable=True).tolist()
    return LayerFigures(
        num_experts=len(load_E),
        assignments=total,
        lowest=_known(float(ratio.min())) if total else None,
        highest=_known(float(ratio.max())) if total else None,
        effective_experts=evenness.effective_experts(load_E) if total else None,
        dead=int((load_E == 0).sum()),
        max_violation=evenness.max_violation(load_E) if total else None,
        entropy=evenness.normalized_entropy(load_E) if total else None,
        margin=margin,
        nmi=None if nmi is None else _known(nmi),
        hottest=tuple((expert, float(ratio[expert])) for expert in order[:best]) if total else (),
        coldest=tuple((expert, float(ratio[expert])) for expert in order[::-1][:best]) if total else (),
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def margin_of(trace: Trace, layer: int) -> float | None:
    """The median over the tokens of the gap between the last logit that was taken and the first that was not."""
    if trace.logits is None:
        return None
    gaps = []
    for start in range(0, trace.num_tokens, CHUNK):
        rows = slice(start, start + CHUNK)
        gaps.append(edge_gaps(trace.logits[rows, layer].float(), trace.indices[rows, layer].long()))
    gap_T = torch.cat(gaps) if gaps else torch.zeros(0)
    gap_T = gap_T[torch.isfinite(gap_T)]
    return float(gap_T.median()) if len(gap_T) else None


def edge_gaps(logits_TE: Tensor, index_TK: Tensor) -> Tensor:
    """``[T]``: the lowest logit among the chosen experts less the highest among the others; NaN without either."""
    chosen_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
    chosen_TE.scatter_(1, index_TK.clamp(min=0), index_TK >= 0)
    inner_T = logits_TE.masked_fill(~chosen_TE, math.inf).min(dim=1).values
    outer_T = logits_TE.masked_fill(chosen_TE, -math.inf).max(dim=1).values
    return torch.where((index_TK >= 0).any(dim=1), inner_T - outer_T, math.nan)


def pair_counts(trace: Trace) -> Counts:
    """``[L, E, E]``: tokens that went to both experts, symmetric; 0 on the diagonal."""
    width = max(trace.num_experts, default=0)
    counts = np.zeros((trace.num_layers, width, width), np.int64)
    for layer in range(trace.num_layers):
        index_KT = np.ascontiguousarray(trace.indices[:, layer].numpy().T.astype(np.int64))
        table = np.zeros(width * width, np.int64)
        for one in range(trace.top_k):
            for other in range(one + 1, trace.top_k):
                cells = index_KT[one] * width + index_KT[other]
                table += np.bincount(cells[(index_KT[one] >= 0) & (index_KT[other] >= 0)], minlength=width * width)
        counts[layer] = table.reshape(width, width)
        counts[layer] += counts[layer].T.copy()
    return counts
