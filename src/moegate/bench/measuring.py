"""From a case to a row: check every variant, time the right ones in turn, and say what the times are worth."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from moegate.bench.cases import Case, Variant
from moegate.bench.limits import Limits
from moegate.bench.machine import Bystanders, load_average
from moegate.bench.results import Row
from moegate.bench.timing import Effort, Timing, interleaved


def verdicts(case: Case) -> dict[str, str]:
    """Variant -> why it gets no time: its result is wrong, or it failed. Nothing for those that are right."""
    found = {}
    for variant in case.variants:
        trouble = _trouble(variant, case)
        if trouble is not None:
            found[variant.name] = trouble
    return found


def _trouble(variant: Variant, case: Case) -> str | None:
    try:
        result = variant.read(variant.call())
    except Exception as error:  # a peer may fail in any way; that is a finding, and no reason to lose the others
        sentence = str(error).strip().splitlines() or [""]
        return f"failed: {type(error).__name__}: {sentence[0][:200]}"
    verdict = case.check(result)
    return None if verdict is None else f"wrong: {verdict}"


def measure(case: Case, threads: int, limits: Limits, effort: Effort) -> Row:
    """One row: the verdicts, the times of what is right, ratios, the floor, and how busy the machine was.

    Args:
        case: what to measure.
        threads: the number that PyTorch is set to.
        limits: the peaks that were measured with as many threads.
        effort: how long.
    """
    torch.set_num_threads(threads)
    trouble = verdicts(case)
    right = {variant.name: variant.call for variant in case.variants if variant.name not in trouble}
    bystanders = Bystanders()
    timings = interleaved(right, effort)
    others = bystanders.cores()
    row: Row = {
        "case": case.name,
        "shape": case.shape,
        "timed": case.timed,
        "threads": threads,
        "variants": {variant.name: _entry(variant, timings, trouble) for variant in case.variants},
        "missing": case.missing,
        "ratios": ratios(case, timings),
        "others_cores": others,
        "load_average": load_average(),
    }
    if case.work is not None:
        row["floor"] = limits.floor(case.work)._asdict()
    row["facts"] = {name: fact() for name, fact in case.facts.items()}
    return row


def _entry(variant: Variant, timings: dict[str, Timing], trouble: dict[str, str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"ours": variant.ours}
    if variant.name in trouble:
        return {**entry, "trouble": trouble[variant.name]}
    timing = timings[variant.name]
    return {**entry, "min_us": timing.min_us, "median_us": timing.median_us, "rounds": timing.rounds}


class Timed(Protocol):
    """What ratios are made of."""

    @property
    def min_us(self) -> float:
        """The shortest."""
        ...

    @property
    def median_us(self) -> float:
        """The median."""
        ...


def ratios(case: Case, timings: Mapping[str, Timed]) -> dict[str, dict[str, float]]:
    """Variant -> its time as a multiple of ours: above 1, moegate is faster. Empty when ours was not timed."""
    ours = next((variant.name for variant in case.variants if variant.ours), None)
    if ours is None or ours not in timings:
        return {}
    base = timings[ours]
    return {
        name: {"min": timing.min_us / base.min_us, "median": timing.median_us / base.median_us}
        for name, timing in timings.items()
        if name != ours
    }
