"""How far a run has come: a bar in a terminal, a line for each measurement anywhere else."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class BarProgress:
    """A bar with the case that is being measured.

    Example:
        >>> with BarProgress(Console(quiet=True), total=1) as progress:
        ...     progress.step("softmax")
        ...     progress.done()
    """

    def __init__(self, console: Console, total: int) -> None:
        columns = (
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> "BarProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, title: str) -> None:
        """Show what is measured now."""
        self._progress.update(self._task, description=title)

    def done(self) -> None:
        """Move the bar."""
        self._progress.advance(self._task)


class LineProgress:
    """A numbered line for each measurement.

    Example:
        >>> with LineProgress(Console(), total=2) as progress:
        ...     progress.step("softmax")
        [1/2] softmax
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._number = console, total, 0

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left open."""

    def step(self, title: str) -> None:
        """Print what is measured now."""
        self._number += 1
        text = f"[{self._number}/{self._total}] {title}"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def done(self) -> None:
        """Nothing to move."""


def make_progress(console: Console, total: int) -> BarProgress | LineProgress:
    """A bar for a terminal, lines for anything else."""
    return BarProgress(console, total) if console.is_terminal else LineProgress(console, total)
