"""What a run logged while training, from `metrics.jsonl`."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from moegate.report.reading import Array, Record, read_lines
from moegate.report.records import History, LoadWindow, Run

MAX_WINDOWS = 256  # load windows held in memory; a longer training merges neighbours


class _Entry(NamedTuple):
    step: int
    loss: float | None
    tokens_per_second: float | None
    max_violation: Array | None
    utilization: Array | None
    drop_rate: Array | None


def read_history(run: Run) -> History:
    """The training log; of an unfinished run it may be missing, or end in half a line.

    Raises:
        ValueError: the log of a finished run is missing or empty, or a line is damaged.
    """
    path = run.directory / "metrics.jsonl"
    if not run.finished and not path.exists():
        return History()
    entries: list[_Entry] = []
    windows: list[LoadWindow] = []
    for record in read_lines(path, may_be_cut=not run.finished):
        entry = _entry(record, run.num_layers)
        # A run that was resumed from a checkpoint may have logged some steps twice: the later ones count.
        while entries and entries[-1].step >= entry.step:
            entries.pop()
        while windows and windows[-1].last_step >= entry.step:
            windows.pop()
        entries.append(entry)
        load_LE = record.counts("load", (run.num_layers, run.num_experts))
        if load_LE is not None:
            windows.append(LoadWindow(entry.step, entry.step, load_LE))
        if len(windows) > MAX_WINDOWS:
            windows = merge_windows(windows, MAX_WINDOWS // 2)
    if run.finished and not entries:
        raise ValueError(f"{path} is empty although run.json says the run is done.")
    return History(
        step=tuple(entry.step for entry in entries),
        loss=tuple(entry.loss for entry in entries),
        tokens_per_second=tuple(entry.tokens_per_second for entry in entries),
        max_violation=tuple(entry.max_violation for entry in entries),
        utilization=tuple(entry.utilization for entry in entries),
        drop_rate=tuple(entry.drop_rate for entry in entries),
        load=tuple(windows),
    )


def _entry(record: Record, layers: int) -> _Entry:
    return _Entry(
        step=record.whole("step"),
        loss=record.required_number("loss"),
        tokens_per_second=record.number("tokens_per_second"),
        max_violation=record.grid("max_violation", (layers,)),
        utilization=record.grid("utilization", (layers,)),
        drop_rate=record.grid("drop_rate", (layers,)),
    )


def merge_windows(windows: Iterable[LoadWindow], at_most: int) -> list[LoadWindow]:
    """Sums neighbouring windows until at most `at_most` are left, each covering as many as the others."""
    windows = list(windows)
    size = max(1, -(-len(windows) // at_most))
    groups = [windows[start : start + size] for start in range(0, len(windows), size)]
    return [
        LoadWindow(group[0].first_step, group[-1].last_step, np.sum([window.load_LE for window in group], axis=0))
        for group in groups
    ]
