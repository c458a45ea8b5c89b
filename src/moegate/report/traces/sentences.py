"""What a trace shows, in sentences. Every claim is computed."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from moegate.trace import LayerStatistics, Loads, Trace

if TYPE_CHECKING:
    from moegate.report.traces.content import Figures

__all__ = ["findings"]

_EVEN = 0.5  # MaxVio: the busiest expert has at most half more than its fair share
_ENOUGH = 20  # assignments: with fewer, chance alone makes links of domains and experts, and idle experts


def findings(trace: Trace | Loads, figures: "Figures") -> list[str]:
    """The sentences at the head of the page, and below the table of the command line."""
    if not figures.load_LE.sum():
        return ["No token went to any expert, so there is nothing to show."]
    known = [(label, line) for label, line in zip(figures.labels, figures.table, strict=True) if line.assignments]
    return [
        *_balance(known),
        *_dead(known, trace),
        *_unused(figures),
        *_domains(trace, figures),
        *_phases(figures),
    ]


def _balance(known: Sequence[tuple[str, LayerStatistics]]) -> list[str]:
    violations = [(line.max_violation, label, line) for label, line in known]
    worst, label, line = max(violations, key=lambda entry: entry[0])
    typical = median(violation for violation, _, _ in violations)
    if worst <= _EVEN:
        return [f"The load is fairly even: no expert gets more than {1 + worst:.2f} × its fair share in any layer."]
    busiest = line.hottest[0][0]
    words = f"The load is most uneven in layer {label}: expert {busiest} gets {1 + worst:.2f} × its fair share"
    if len(known) > 1:
        words += f" (MaxVio {worst:.2f}; the median of the layers is {typical:.2f})"
    used = [line.effective_experts / line.num_experts for _, line in known]
    narrowest = int(np.argmin(used))
    label, line = known[narrowest]
    return [
        words + ".",
        f"Effective experts: {line.effective_experts:.1f} of {line.num_experts} in layer {label}"
        + (f", the fewest; {_percent(median(used))} of a layer's experts at the median." if len(known) > 1 else "."),
    ]


def _dead(known: Sequence[tuple[str, LayerStatistics]], trace: Trace | Loads) -> list[str]:
    dead = sum(line.dead_experts for _, line in known)
    total = sum(line.num_experts for _, line in known)
    if not dead:
        return [f"Every one of the {total:,} experts was used."]
    label, line = max(known, key=lambda entry: entry[1].dead_experts)
    where = f"{'all' if line.dead_experts == dead else 'most'} in layer {label}"
    words = f"{dead:,} of {total:,} experts got no token, {where} ({line.dead_experts} of {line.num_experts})."
    if min(line.assignments / line.num_experts for _, line in known) < _ENOUGH:
        words += " With so few tokens an expert may be idle by chance: record more before calling it dead."
    return [words]


def _unused(figures: "Figures") -> list[str]:
    silent = [label for label, line in zip(figures.labels, figures.table, strict=True) if not line.assignments]
    if not silent:
        return []
    listed = ", ".join(silent[:8]) + (" …" if len(silent) > 8 else "")
    return [f"No token was seen in {len(silent)} of {len(figures.labels)} layers: {listed}."]


def _domains(trace: Trace | Loads, figures: "Figures") -> list[str]:
    load_NLE = figures.domain_load_NLE
    if isinstance(trace, Loads) or load_NLE is None or (load_NLE.sum(axis=(1, 2)) > 0).sum() < 2:
        return []
    share_NLE = load_NLE / load_NLE.sum(axis=2, keepdims=True).clip(min=1)
    lift_NLE = share_NLE * np.array(trace.num_experts)[:, None] * (load_NLE >= _ENOUGH)
    nmi = zip(np.nan_to_num(figures.nmi or [0.0]), figures.labels, strict=False)
    most, label = max(nmi, key=lambda entry: entry[0])
    sentences = [f"Experts tell most about the domain in layer {label} (NMI {most:.3f})."]
    if lift_NLE.any():
        domain, layer, expert = np.unravel_index(int(lift_NLE.argmax()), lift_NLE.shape)
        sentences.append(
            f"Strongest link of a domain to an expert: expert {expert} of layer {figures.labels[layer]} gets "
            f"{_percent(share_NLE[domain, layer, expert])} of “{trace.domains[domain]}”, "
            f"{lift_NLE[domain, layer, expert]:.1f} × an even spread."
        )
    return sentences


def _phases(figures: "Figures") -> list[str]:
    if figures.phases is None:
        return []
    load_WLE = figures.phases.load_WLE
    share_WLE = load_WLE / load_WLE.sum(axis=2, keepdims=True).clip(min=1)
    moved_L = np.abs(share_WLE[0] - share_WLE[-1]).sum(axis=1) / 2
    layer = int(moved_L.argmax())
    first, last = figures.phases.names[0], figures.phases.names[-1]
    return [
        f"Between {first} and {last}, {_percent(float(moved_L[layer]))} of the load lies on other experts in layer "
        f"{figures.labels[layer]}, the most of any layer."
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
