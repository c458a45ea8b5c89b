"""Runs a suite: case by case, each row kept as soon as it is measured, so that a stop loses nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from moegate.bench.cases import Case, Entry
from moegate.bench.limits import Limits
from moegate.bench.machine import circumstances
from moegate.bench.measuring import measure
from moegate.bench.results import Results, Row
from moegate.bench.suites.suite import Suite
from moegate.bench.timing import Effort


@dataclass(frozen=True)
class Options:
    """What to run of a suite, and how long.

    Attributes:
        threads: numbers of threads, each measured.
        quick: the small cases, briefly.
        only: parts of the key of a case; a case is run when one of them is in it. Empty: all of them.
        without: parts of the name of a variant; one of them leaves the variant out. Never those of moegate.
        resume: take over what this code measured before on this machine.
        effort: how long to measure a case.
    """

    threads: tuple[int, ...] = (1, 2)
    quick: bool = False
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    resume: bool = False
    effort: Effort = field(default_factory=Effort)


class Progress(Protocol):
    """Shows how far a run has come."""

    def step(self, title: str) -> None:
        """Announce the next measurement."""
        ...

    def done(self) -> None:
        """Count a measurement."""
        ...


def chosen_entries(suite: Suite, *, quick: bool, only: tuple[str, ...]) -> list[Entry]:
    """The cases to run: the quick ones or the others, of which the name has one of the texts in it."""
    offered = (entry for entry in suite.entries() if entry.quick == quick)
    return [entry for entry in offered if not only or any(text in entry.key for text in only)]


def without_variants(case: Case, unwanted: tuple[str, ...]) -> Case:
    """The case without the peers whose names have one of the parts."""

    def is_wanted(name: str) -> bool:
        return not any(part in name for part in unwanted)

    kept = tuple(variant for variant in case.variants if variant.ours or is_wanted(variant.name))
    return replace(case, variants=kept)


def run_suite(
    suite: Suite,
    options: Options,
    folder: Path,
    *,
    limits: Mapping[int, Limits],
    progress: Progress,
    rows: list[Row],
) -> None:
    """Measures the chosen cases and appends each row to the results.

    Args:
        suite: what to measure.
        options: which of it.
        folder: where the results are.
        limits: the measured peaks for each number of threads.
        progress: is told of each measurement.
        rows: gets each row as soon as there is one, so that the caller has them even after an interruption.
    """
    known, results = circumstances(), Results(folder, suite.name)
    measured = results.measured(known, quick=options.quick) if options.resume else {}
    for entry in chosen_entries(suite, quick=options.quick, only=options.only):
        case: Case | None = None
        for threads in options.threads:
            progress.step(f"{entry.key}, {threads} threads")
            row = measured.get((entry.key, threads))
            if row is None:
                case = case or without_variants(entry.build(), options.without)
                found = measure(case, threads, limits[threads], options.effort)
                row = {"suite": suite.name, "key": entry.key, "quick": options.quick, **found, **known}
                results.append(row)
            rows.append(row)
            progress.done()
