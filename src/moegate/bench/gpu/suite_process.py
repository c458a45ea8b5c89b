"""One suite of a sitting, in the process that this module is run in: ``python -m moegate.bench.gpu.suite_process``."""

import gc
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from moegate.bench.cases import CPU
from moegate.bench.gpu.card import Card, CudaCard
from moegate.bench.gpu.checks import CHECKS
from moegate.bench.gpu.entries import entries
from moegate.bench.gpu.limits import CardLimits, measure_limits
from moegate.bench.gpu.measuring import Measurement, Spoiled
from moegate.bench.gpu.notebook import Notebook
from moegate.bench.gpu.rehearsal import Rehearsal
from moegate.bench.gpu.tables import case_lines, check_line
from moegate.bench.gpu.timing import Effort
from moegate.bench.machine import circumstances
from moegate.bench.results import Row

INTERRUPTED = 130
GO_ON = 75
"""The exit status of a process that can't go on, while the next one can."""
REHEARSAL_EFFORT = Effort(graph_us=1.0, most_calls=4, seconds=0.0, rounds=(1, 1), wake_seconds=0.0)
Say = Callable[[str], None]


def keys(suite: str) -> list[str]:
    """The names of the checks or of the cases of a suite."""
    return list(CHECKS) if suite == "checks" else [entry.key for entry in entries(suite, CPU)]


def wanted(suite: str, key: str, only: tuple[str, ...]) -> bool:
    """Whether one of the texts is in ``SUITE KEY``, or there is none.

    Example:
        >>> wanted("plan", "plan T=1 E=256 K=8", ("plan plan",)), wanted("more", "plan T=1 E=256 K=8", ("plan plan",))
        (True, False)
    """
    return not only or any(text in f"{suite} {key}" for text in only)


class SuiteRun:
    """The checks or the cases of a suite, until they are done or the time is over."""

    def __init__(self, card: Card, notebook: Notebook, suite: str, *, until: float, only: tuple[str, ...] = ()) -> None:
        self._card, self._notebook, self._suite, self._until, self._only = card, notebook, suite, until, only
        self._effort = Effort() if card.real else REHEARSAL_EFFORT
        self._known = {**circumstances(), "card": card.describe(), "rehearsal": not card.real, "suite": suite}

    def run(self, say: Say) -> None:
        """Measures what is left of the suite.

        Raises:
            Spoiled: this process can't go on.
        """
        done = self._notebook.measured(self._suite)
        with self._card.session():
            if self._suite == "checks":
                self._check(done, say)
                return
            limits: CardLimits | None = None
            for entry in entries(self._suite, self._card.place, tiny=not self._card.real):
                if entry.key in done or not wanted(self._suite, entry.key, self._only):
                    continue
                if self._is_over(entry.key, say):
                    continue
                limits = limits or self._limits(say)
                case_row = self._measured(entry.key, entry.build, limits)
                self._keep(entry.key, case_row)
                say("\n".join(case_lines(case_row)))

    def _measured(self, key: str, build: Callable[[], object], limits: CardLimits) -> Row:
        note = partial(self._notebook.turn, self._suite, key)
        known = self._notebook.known(self._suite, key)
        if "" in known.lost:  # not while one contender was at work: it would end so again
            return {"key": key, "rehearsal": not self._card.real, "failed": known.lost[""]}
        note("", "inputs")
        try:
            case = build()
            row = Measurement(self._card, case, self._effort, known, note).row(limits)  # type: ignore[arg-type]
            del case
        except Spoiled:
            raise
        except Exception as error:  # of the case as a whole, such as memory that does not suffice
            self._after(error)
            row = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        gc.collect()
        self._card.release()
        return {"key": key, "rehearsal": not self._card.real, **row}

    def _after(self, error: Exception) -> None:
        try:
            self._card.wait()
        except Exception as still:
            raise Spoiled(str(error)) from still

    def _check(self, done: set[str], say: Say) -> None:
        for name, check in CHECKS.items():
            if name in done or not wanted(self._suite, name, self._only):
                continue
            if self._is_over(name, say):
                continue
            self._notebook.turn(self._suite, name, name, "check")
            known = self._notebook.known(self._suite, name)
            start = time.monotonic()
            verdict = known.lost.get(name) or self._verdict(check)
            row = {"key": name, "verdict": verdict, "seconds": round(time.monotonic() - start, 2)}
            self._keep(name, row)
            say(check_line(row))

    def _verdict(self, check: Callable[[Card], str | None]) -> str | None:
        try:
            verdict = check(self._card)
            self._card.wait()
        except Exception as error:
            self._after(error)
            return f"failed: {type(error).__name__}: {str(error)[:300]}"
        return verdict

    def _limits(self, say: Say) -> CardLimits:
        self._notebook.turn(self._suite, "limits", "", "limits")
        limits = measure_limits(self._card)
        row = {"copy": limits.copy, "read": limits.read, "operations": limits.operations}
        self._keep("limits", {"limits": {**row, "smallest_us": limits.smallest_us}})
        return limits

    def _is_over(self, key: str, say: Say) -> bool:
        if time.monotonic() < self._until:
            return False
        self._keep(key, {"skipped": "the time was over"})
        say(f"skipped, the time is over: {self._suite} {key}")
        return True

    def _keep(self, key: str, row: Row) -> None:
        self._notebook.append({**self._known, **row, "key": key})
        self._notebook.forget()


def main(arguments: list[str]) -> int:
    """``FOLDER SITTING SUITE DEVICE SECONDS ONLY``; returns the exit status."""
    folder, sitting, suite, device, seconds, only = arguments
    card: Card = CudaCard() if device == "cuda" else Rehearsal()
    texts = tuple(text for text in only.split(",") if text)
    until = time.monotonic() + float(seconds)
    try:
        run = SuiteRun(card, Notebook(Path(folder), sitting), suite, until=until, only=texts)
        run.run(partial(print, flush=True))
    except Spoiled as reason:
        print(f"The process can't go on: {reason}", flush=True)
        return GO_ON
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
