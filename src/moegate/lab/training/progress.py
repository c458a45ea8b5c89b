"""Progress of runs and sweeps: bars in a terminal, a line every few seconds anywhere else."""

import time
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class StepReport(NamedTuple):
    """What is shown of one optimizer step."""

    step: int
    loss: float
    tokens_per_second: float
    max_violation: float | None

    def __str__(self) -> str:
        balance = "" if self.max_violation is None else f"  MaxVio {self.max_violation:.2f}"
        return f"loss {self.loss:.3f}  {self.tokens_per_second:,.0f} tokens/s{balance}"


class Reporter(Protocol):
    """Shows how far a run, or a sweep of runs, has come."""

    def runs(self, total: int, done: int) -> None:
        """Announce a sweep of `total` runs, of which `done` are finished."""
        ...

    def start(self, title: str, total_steps: int, done_steps: int) -> None:
        """Announce a run."""
        ...

    def advance(self, report: StepReport) -> None:
        """Show a step."""
        ...

    def finish(self, message: str) -> None:
        """Announce the end of a run."""
        ...

    def close(self) -> None:
        """Leave the screen tidy."""
        ...


class SilentReporter:
    """Shows nothing.

    Example:
        >>> SilentReporter().advance(StepReport(1, 0.5, 1000.0, None))
    """

    def runs(self, total: int, done: int) -> None:
        """Take note of nothing."""

    def start(self, title: str, total_steps: int, done_steps: int) -> None:
        """Take note of nothing."""

    def advance(self, report: StepReport) -> None:
        """Take note of nothing."""

    def finish(self, message: str) -> None:
        """Take note of nothing."""

    def close(self) -> None:
        """Do nothing."""


class LineReporter:
    """Prints a line when a run starts and ends, and one every few seconds between: for logs.

    Example:
        >>> reporter = LineReporter(Console(), every_seconds=0.0)
        >>> reporter.start("topk K=2", total_steps=10, done_steps=0)
        topk K=2: 10 steps
        >>> reporter.advance(StepReport(1, 0.5, 1000.0, 0.25))
          step 1/10  loss 0.500  1,000 tokens/s  MaxVio 0.25
    """

    def __init__(self, console: Console, every_seconds: float = 10.0) -> None:
        self._console = console
        self._every = every_seconds
        self._last = 0.0
        self._total_steps = 0
        self._total_runs = 0
        self._done_runs = 0

    def runs(self, total: int, done: int) -> None:
        """Remember the number of runs, to number them."""
        self._total_runs, self._done_runs = total, done

    def start(self, title: str, total_steps: int, done_steps: int) -> None:
        """Print the title and the number of steps."""
        self._total_steps, self._last = total_steps, time.monotonic()
        number = f"[{self._done_runs + 1}/{self._total_runs}] " if self._total_runs else ""
        resumed = f", resumed after step {done_steps}" if done_steps else ""
        self._print(f"{number}{title}: {total_steps} steps{resumed}")

    def advance(self, report: StepReport) -> None:
        """Print the step if the last line is old enough."""
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._print(f"  step {report.step}/{self._total_steps}  {report}")

    def finish(self, message: str) -> None:
        """Print the outcome."""
        self._done_runs += 1
        self._print(f"  {message}")

    def close(self) -> None:
        """Nothing is left open."""

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class BarReporter:
    """Draws a bar for the run and, in a sweep, one for all runs."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
        )
        self._all: TaskID | None = None
        self._run: TaskID | None = None

    def runs(self, total: int, done: int) -> None:
        """Draw the bar of all runs."""
        self._all = self._progress.add_task("all runs", total=total, completed=done, status="")
        self._progress.start()

    def start(self, title: str, total_steps: int, done_steps: int) -> None:
        """Draw the bar of a run."""
        self._run = self._progress.add_task(title, total=total_steps, completed=done_steps, status="")
        self._progress.start()

    def advance(self, report: StepReport) -> None:
        """Move the bar of the run."""
        self._update(completed=report.step, status=str(report))

    def finish(self, message: str) -> None:
        """Replace the bar of the run by its outcome."""
        self._update(status=message)
        if self._all is None or self._run is None:
            return
        title = self._progress.tasks[self._progress.task_ids.index(self._run)].description
        self._progress.console.print(f"{title}: {message}", highlight=False, markup=False)
        self._progress.remove_task(self._run)
        self._progress.advance(self._all)
        self._run = None

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()

    def _update(self, **values: Any) -> None:
        if self._run is not None:
            self._progress.update(self._run, **values)


def make_reporter(console: Console) -> Reporter:
    """Return bars for a terminal and lines for anything else.

    Example:
        >>> import io
        >>> type(make_reporter(Console(file=io.StringIO()))).__name__
        'LineReporter'
    """
    return BarReporter(console) if console.is_terminal else LineReporter(console)
