"""From a case to a row on a card: check every contender, capture it, check what the graph wrote, time all in turn."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from moegate.bench.cases import Case, Variant
from moegate.bench.gpu.card import Card, first_line
from moegate.bench.gpu.limits import CardLimits
from moegate.bench.gpu.targets import judged
from moegate.bench.gpu.timing import EAGER, IN_A_GRAPH, Effort, Run, Timing, interleaved, prepared, wake
from moegate.bench.measuring import ratios
from moegate.bench.results import Row

CAPTURE = "capture"
_WARM, _COLD, _PART = "", " (cold)", "part "


class Spoiled(Exception):
    """The card answers no more, or a capture broke off in the middle: this process can't go on."""


@dataclass(frozen=True)
class Known:
    """What earlier processes of a sitting found about a case.

    Attributes:
        lost: variant -> why it takes part no more.
        eager: variants whose capture broke a process off, so that they are timed eagerly.
        peers_lost: the same as ``lost``, from other cases of the suite; it holds for peers alone.
        peers_eager: the same as ``eager``, from other cases of the suite; it holds for peers alone.
    """

    lost: Mapping[str, str] = field(default_factory=dict)
    eager: frozenset[str] = frozenset()
    peers_lost: Mapping[str, str] = field(default_factory=dict)
    peers_eager: frozenset[str] = frozenset()


Note = Callable[[str, str], None]
"""Is told which contender's turn it is, and at what; so that a process that dies leaves a culprit."""


class Measurement:
    """The measurement of one case."""

    def __init__(self, card: Card, case: Case, effort: Effort, known: Known, note: Note) -> None:
        self._card, self._case, self._effort, self._known, self._note = card, case, effort, known, note
        peers = {variant.name for variant in case.variants if not variant.ours}
        self._trouble = {name: reason for name, reason in known.peers_lost.items() if name in peers} | dict(known.lost)
        self._eager = known.eager | (known.peers_eager & peers)
        self._runs: dict[str, Run] = {}

    def row(self, limits: CardLimits) -> Row:
        """One row: verdicts, times, ratios, floor, and whether the target was met.

        Raises:
            Spoiled: this process can't go on.
        """
        for variant in self._case.variants:
            if variant.name not in self._trouble:
                self._prepare(variant)
        parts = self._prepared_parts()
        self._note("", "timing")
        wake(self._card, self._effort)
        timings = interleaved(self._card, {**self._runs, **parts}, self._effort)
        return self._written(limits, timings)

    def _prepare(self, variant: Variant) -> None:
        self._note(variant.name, "check")
        trouble = self._attempt(lambda: self._case.check(variant.read(variant.call())))
        if trouble is not None:
            self._trouble[variant.name] = trouble
            return
        self._runs[variant.name + _WARM] = self._captured(variant.name, [variant.call])
        if variant.others:
            self._runs[variant.name + _COLD] = self._captured(variant.name, [variant.call, *variant.others])
        run = self._runs[variant.name]
        if run.how == IN_A_GRAPH:
            self._note(variant.name, "check of the graph")
            trouble = self._attempt(lambda: self._case.check(variant.read(run.result)))
            if trouble is not None:
                self._trouble[variant.name] = f"in a graph {trouble}"
                for name in (variant.name + _WARM, variant.name + _COLD):
                    self._runs.pop(name, None)

    def _captured(self, name: str, calls: list[Callable[[], Any]]) -> Run:
        self._note(name, CAPTURE)
        eager = "its capture failed" if name in self._eager else ""
        try:
            return prepared(self._card, calls, self._effort, eager=eager)
        except Exception as error:  # after a capture that broke off, PyTorch's allocator waits for its end for ever
            raise Spoiled(f"{name}: {type(error).__name__}: {first_line(error)}") from error

    def _attempt(self, judge: Callable[[], str | None]) -> str | None:
        try:
            verdict = judge()
            self._card.wait()
        except Exception as error:
            try:
                self._card.wait()
            except Exception as still:
                raise Spoiled(first_line(error)) from still
            return f"failed: {type(error).__name__}: {first_line(error)}"
        return None if verdict is None else f"wrong: {verdict}"

    def _prepared_parts(self) -> dict[str, Run]:
        ours = next(variant.name for variant in self._case.variants if variant.ours)
        if ours in self._trouble:
            return {}
        calls = {_part(name): call for name, call in self._case.parts().items()}
        return {name: self._captured(name, [call]) for name, call in calls.items() if name not in self._known.lost}

    def _written(self, limits: CardLimits, timings: dict[str, Timing]) -> Row:
        case = self._case
        floor = None if case.work is None else limits.as_limits().floor(case.work)
        row: Row = {
            "case": case.name,
            "shape": case.shape,
            "timed": case.timed,
            "variants": {variant.name: self._entry(variant, timings) for variant in case.variants},
            "missing": case.missing,
            "ratios": ratios(case, {v.name: timings[v.name] for v in case.variants if v.name in timings}),
            "parts": {name.removeprefix(_PART): asdict(timings[name]) for name in timings if name.startswith(_PART)},
            "facts": {name: fact() for name, fact in case.facts.items()},
        }
        if floor is not None and case.work is not None:
            row |= {"floor": floor._asdict(), "work": asdict(case.work)}
        if case.target is not None:
            row |= {"target": asdict(case.target), "judged": judged(row, case.target)}
        return row

    def _entry(self, variant: Variant, timings: dict[str, Timing]) -> dict[str, Any]:
        entry: dict[str, Any] = {"ours": variant.ours}
        if variant.name in self._trouble:
            return {**entry, "trouble": self._trouble[variant.name]}
        run = self._runs[variant.name]
        entry |= {**asdict(timings[variant.name]), "how": run.how, "calls": run.calls}
        if run.how == EAGER:
            entry["note"] = run.note
        if variant.name + _COLD in timings:
            entry["cold"] = asdict(timings[variant.name + _COLD])
        return entry


def _part(name: str) -> str:
    return _PART + name
