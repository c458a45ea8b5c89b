"""A sitting: every suite in a process of its own, within a budget; what ends badly costs no more than itself."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from moegate.bench.gpu.entries import SHARES, SUITES
from moegate.bench.gpu.notebook import FILE, Notebook
from moegate.bench.gpu.suite_process import INTERRUPTED, keys, wanted
from moegate.bench.gpu.tables import failures, report

SECONDS = 420.0
STUCK_SECONDS = 120.0
"""One contender's check or capture, or one of the checks, may take so long, compilations included."""
_POLL_SECONDS = 0.2
_RESTARTS = 6
_GRACE = 45.0  # a case that has begun may end
_REHEARSED = {"MOEGATE_KERNEL": "triton", "TRITON_INTERPRET": "1"}
_PROCESS = ("-m", "moegate.bench.gpu.suite_process")


@dataclass(frozen=True)
class Plan:
    """What to measure and how long.

    Attributes:
        suites: in their order.
        device: ``cuda``, or ``rehearsal`` for the same steps on the CPU.
        seconds: for all of it.
        only: parts of ``SUITE KEY``; a case is measured when one of them is in it. Empty: all.
        stuck_seconds: after so long at one contender a process is ended, and goes on without it.
        process: what Python runs for a suite.
    """

    suites: tuple[str, ...] = tuple(SUITES)
    device: str = "cuda"
    seconds: float = SECONDS
    only: tuple[str, ...] = ()
    stuck_seconds: float = STUCK_SECONDS
    process: tuple[str, ...] = _PROCESS


@dataclass(frozen=True)
class Ended:
    """How a process ended that was not done; ``late`` when that was for the time of its suite."""

    reason: str
    late: bool = False


class Sitting:
    """Runs the suites of a plan one after the other."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
        name = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self.plan, self.folder, self._say = plan, folder, say
        self.notebook = Notebook(folder, name)
        self._end = time.monotonic() + plan.seconds

    def run(self) -> int:
        """The exit status: 0, 1 when something of moegate is wrong or failed, 130 when it was interrupted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.notebook.forget()  # the note of a sitting that was interrupted says nothing about this one
        suites = wanted_suites(self.plan.suites, self.plan.only)
        owed = sum(SHARES[suite] for suite in suites)
        try:
            for suite in suites:
                left = max(0.0, self._end - time.monotonic())
                self._say(f"== {suite}: {SUITES[suite]}")
                self._run_suite(suite, left * SHARES[suite] / owed)
                owed -= SHARES[suite]
                self._write()
        except KeyboardInterrupt:
            self._write()
            self._say(f"Stopped. What was measured is kept in {self.folder}.")
            return INTERRUPTED
        return self._close()

    def _run_suite(self, suite: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        for _ in range(_RESTARTS):
            ended = self._run_process(suite, until)
            if ended is None:
                return
            if ended.late or time.monotonic() > until:
                self._skip_the_rest(suite)
                return
            self._say(f"   {suite}: {ended.reason}; it goes on without what was at work")
            if self.notebook.current() is None:  # it did not come as far as the first case
                break
            self.notebook.blame(ended.reason)
        self.notebook.append({"suite": suite, "key": suite, "unfinished": "its process ended again and again"})

    def _skip_the_rest(self, suite: str) -> None:
        """Names what was not reached; who was at work when the time was over is not to blame."""
        current = self.notebook.current()
        self.notebook.forget()
        done = {row["key"] for row in self.notebook.rows() if row["suite"] == suite and "lost" not in row}
        for key in keys(suite):
            if key not in done and wanted(suite, key, self.plan.only):
                begun = current is not None and current["key"] == key
                reason = "the time was over while it was measured" if begun else "the time was over"
                self.notebook.append({"suite": suite, "key": key, "skipped": reason})
                self._say(f"skipped, {reason}: {suite} {key}")

    def _run_process(self, suite: str, until: float) -> "Ended | None":
        """None when the suite is done; else how its process ended."""
        plan = self.plan
        left = max(0.0, until - time.monotonic())
        values = (self.folder, self.notebook.sitting, suite, plan.device, left, ",".join(plan.only))
        quiet = ["-W", "ignore::RuntimeWarning"] if plan.device == "rehearsal" else []  # of the interpreter, on NaN
        command = [sys.executable, *quiet, *plan.process, *map(str, values)]
        more = _REHEARSED if plan.device == "rehearsal" else {}
        process = subprocess.Popen(command, env={**os.environ, **more})
        try:
            return self._watch(process, until + _GRACE)
        except KeyboardInterrupt:
            _end(process)
            raise

    def _watch(self, process: "subprocess.Popen[bytes]", latest: float) -> "Ended | None":
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            current = self.notebook.current()
            at_it = 0.0 if current is None else time.time() - current["since"]
            late = time.monotonic() > latest
            if late or at_it > self.plan.stuck_seconds:
                _end(process)
                step = "" if current is None else f" at {current['who'] or current['key']}: {current['step']}"
                return Ended(f"ended after {at_it:.0f} s{step}", late)
        status = process.returncode
        return None if status == 0 else Ended(f"its process ended with status {status}")

    def _write(self) -> None:
        table = self.folder / f"{FILE}.md"
        temporary = table.with_suffix(".md.new")
        temporary.write_text(report(self._rows()), encoding="utf-8")
        temporary.replace(table)

    def _rows(self) -> list[dict[str, object]]:
        return [row for row in self.notebook.rows() if "lost" not in row and "unfinished" not in row]

    def _close(self) -> int:
        rows = self._rows()
        self._say(report(rows))
        self._say(f"Results: {self.folder / f'{FILE}.jsonl'}, {self.folder / f'{FILE}.md'}")
        wrong = failures(rows)
        lost = [row for row in self.notebook.rows() if "unfinished" in row]
        wrong += [f"{row['suite']}: {row['unfinished']}" for row in lost]
        for sentence in wrong:
            self._say(f"FAILED: {sentence}")
        measured = [row for row in rows if "skipped" not in row]
        return 1 if wrong or not measured else 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process that does not listen: a kernel that hangs keeps it from returning."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wanted_suites(suites: Sequence[str], only: tuple[str, ...]) -> list[str]:
    """The suites with a case or a check that one of the texts is in; all of them without a text.

    Example:
        >>> wanted_suites(tuple(SUITES), ("decode bf16 T=1 ",))
        ['decode']
    """
    return [suite for suite in suites if any(wanted(suite, key, only) for key in keys(suite))]


def chosen_suites(name: str) -> Sequence[str]:
    """All suites, or the one of a name.

    Raises:
        ValueError: there is none of that name.
    """
    if name == "all":
        return tuple(SUITES)
    if name not in SUITES:
        raise ValueError(f"There is no benchmark {name!r} for a GPU: choose one of {', '.join(SUITES)}, or all.")
    return (name,)
