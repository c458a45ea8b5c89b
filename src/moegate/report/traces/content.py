"""Everything the page about a trace shows, as one JSON value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moegate.metrics import domain_nmi
from moegate.report.content import package_version
from moegate.report.inside import coactivation
from moegate.report.packing import pack_ratios
from moegate.report.traces.compared import Comparison
from moegate.report.traces.detail import Detail
from moegate.report.traces.figures import (
    Bins,
    as_lines,
    fair_ratio,
    load_by,
    over_phases,
    over_positions,
    over_recording,
    pair_counts,
)
from moegate.report.traces.names import layer_labels
from moegate.report.traces.sentences import findings
from moegate.report.traces.views import Decode, token_views
from moegate.report.wording import describe_rule, describe_software
from moegate.trace import LayerStatistics, Loads, Trace, layer_table

__all__ = ["Figures", "build_content", "count"]

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figures:
    """What is counted once, over all tokens, however much of it a page has room for."""

    labels: list[str]
    table: Sequence[LayerStatistics]
    load_LE: Array
    domain_load_NLE: Counts | None = None
    nmi: Sequence[float] | None = None
    pairs_LEE: Counts | None = None
    positions: Bins | None = None
    phases: Bins | None = None


def count(trace: Trace | Loads) -> Figures:
    """All figures of a trace that do not depend on the room on the page."""
    labels, load_LE, table = layer_labels(trace.layers), trace.load.double().numpy(), layer_table(trace)
    if isinstance(trace, Loads):
        return Figures(labels, table, load_LE)
    domains, nmi = None, None
    if trace.domain_ids is not None and trace.domains:
        domains = load_by(trace, trace.domain_ids.numpy().astype(np.int64), len(trace.domains))
    if domains is not None and len(trace.domains) > 1:
        nmi = [domain_nmi(torch.from_numpy(domains[:, layer])) for layer in range(trace.num_layers)]
    pairs = pair_counts(trace) if trace.top_k > 1 else None
    return Figures(labels, table, load_LE, domains, nmi, pairs, over_positions(trace), over_phases(trace))


@dataclass(frozen=True)
class Subject:
    """What a page is about: a trace with its figures, and what else is shown with it."""

    trace: Trace | Loads
    figures: Figures
    decode: Decode | None
    comparison: Comparison | None
    top_k: Sequence[Mapping[str, Any]]
    title: str

    @property
    def findings(self) -> list[str]:
        """What the trace shows, and the comparison, in sentences."""
        of_comparison = self.comparison.findings() if self.comparison else []
        return findings(self.trace, self.figures) + of_comparison


def build_content(subject: Subject, detail: Detail) -> dict[str, Any]:
    """The page's data at one level of detail."""
    trace, figures = subject.trace, subject.figures
    comparison = subject.comparison
    differs = comparison.unshared if comparison is not None and comparison.difference is not None else None
    views: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    cut = False
    if isinstance(trace, Trace):
        views, texts, cut = token_views(trace, subject.decode, detail, differs)
    return {
        "title": subject.title,
        "version": package_version(),
        "generated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "findings": subject.findings,
        "facts": facts(trace),
        "tiles": tiles(trace, figures),
        "run": _run(trace, figures, detail) | {"views": views},
        "comparison": comparison.content(detail) if comparison else None,
        "top_k": list(subject.top_k),
        "texts": texts,
        "trimmed": _trimmed(trace, figures, detail, cut),
    }


def _run(trace: Trace | Loads, figures: Figures, detail: Detail) -> dict[str, Any]:
    """The trace in the form that the charts of a run read."""
    run: dict[str, Any] = {
        "num_layers": trace.num_layers,
        "num_experts": max(trace.num_experts, default=0),
        "layer_experts": list(trace.num_experts) if len(set(trace.num_experts)) > 1 else None,
        "layers": figures.labels,
        "modules": list(trace.layers),
        "table": as_lines(figures.table, figures.nmi),
        "final_load": pack_ratios(fair_ratio(figures.load_LE, trace.num_experts), np.uint16),
    }
    if isinstance(trace, Loads):
        return run
    over = {
        "recording": over_recording(trace, detail.windows),
        "position": figures.positions,
        "phase": figures.phases,
    }
    return run | {
        "top_k": trace.top_k,
        "domains": _domains(trace, figures.domain_load_NLE, detail.domains),
        "pairs": coactivation(figures.pairs_LEE, detail.pair_experts, detail.strongest_pairs),
        "over": {name: _bins(bins, trace.num_experts) for name, bins in over.items() if bins is not None},
    }


def _bins(bins: Bins, num_experts: Sequence[int]) -> dict[str, Any]:
    ratio = fair_ratio(bins.load_WLE, num_experts)
    return {"names": bins.names, "words": bins.words, "ratio": pack_ratios(ratio, np.uint8)}


def _domains(trace: Trace, load_NLE: Counts | None, at_most: int) -> dict[str, Any] | None:
    """The largest domains by themselves, the others together."""
    if load_NLE is None or not load_NLE.any():
        return None
    names, sizes = list(trace.domains), load_NLE.sum(axis=(1, 2))
    if len(names) > at_most:
        kept = np.sort(np.argsort(-sizes, kind="stable")[: at_most - 1])
        others = np.setdiff1d(np.arange(len(names)), kept)
        load_NLE = np.concatenate([load_NLE[kept], load_NLE[others].sum(axis=0, keepdims=True)])
        names = [*(names[number] for number in kept), f"{len(others)} others"]
    ratio = fair_ratio(load_NLE, trace.num_experts).swapaxes(0, 1)
    return {"names": names, "values": [None] * len(names), "ratio": pack_ratios(ratio, np.uint16)}


def facts(trace: Trace | Loads) -> list[list[str]]:
    """What was recorded, as pairs of a name and its words; only what is known."""
    known = trace.metadata
    software = known.get("software")
    pairs = [
        ("Model", " · ".join(str(known[name]) for name in ("model", "model_type") if known.get(name))),
        ("Source", str(known.get("source") or "")),
        ("Notes", " ".join(map(str, known["notes"])) if isinstance(known.get("notes"), list) else ""),
        ("Routing", " / ".join(_rules(known.get("rules")))),
        ("Software", describe_software(software) if isinstance(software, Mapping) else str(software or "")),
    ]
    return [[name, words] for name, words in pairs if words]


def _rules(rules: Any) -> list[str]:
    """The distinct rules in words, in the order of the layers."""
    rules = rules if isinstance(rules, list) else []
    return list(dict.fromkeys(describe_rule(rule) for rule in rules if isinstance(rule, Mapping)))


def tiles(trace: Trace | Loads, figures: Figures) -> dict[str, Any]:
    """The numbers at the head of the page."""
    numbers: dict[str, Any] = {
        "layers": trace.num_layers,
        "experts": sorted(set(trace.num_experts)),
        "assignments": float(figures.load_LE.sum()),
        "dead": sum(line.dead_experts for line in figures.table),
    }
    if isinstance(trace, Trace):
        numbers |= {"tokens": int(trace.token_mask.sum()), "top_k": trace.top_k}
        if trace.document_ids is not None:
            numbers["documents"] = len(np.unique(trace.document_ids[trace.token_mask].numpy()))
    return numbers


def _trimmed(trace: Trace | Loads, figures: Figures, detail: Detail, cut: bool) -> list[str]:
    """What was left out to keep the file small."""
    sentences = []
    if cut:
        sentences.append("the token view shows the beginning of some documents")
    if figures.pairs_LEE is not None and max(trace.num_experts, default=0) > detail.pair_experts:
        sentences.append(
            f"the map of pairs shows the {detail.pair_experts} busiest experts of each layer (its table lists the "
            "strongest pairs of all)"
        )
    if isinstance(trace, Trace) and len(trace.domains) > detail.domains:
        sentences.append(f"the {detail.domains - 1} largest of {len(trace.domains)} domains have a line of their own")
    return sentences
