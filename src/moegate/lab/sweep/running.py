"""The runs of a sweep: one cell after the other, each resumable, none done twice."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegate.lab.sweep.grid import Axes, Cell, Grid, make_grid
from moegate.lab.sweep.table import make_rows, read_runs, write_table
from moegate.lab.training.config import TrainConfig
from moegate.lab.training.loop import RunOptions, train
from moegate.lab.training.progress import Reporter, SilentReporter
from moegate.lab.training.run_directory import RunDirectory, now, read_json, software, write_json

SCHEMA = 1


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep does.

    Attributes:
        task: "image" or "text".
        axes: what varies.
        base: settings that all runs share.
        command: what the user typed, to be shown beside the results.
    """

    task: str
    axes: Axes
    base: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def config(self, cell: Cell) -> TrainConfig:
        """Return the configuration of a cell.

        Raises:
            ValueError: a base setting that a cell decides.
        """
        settings = cell.settings()
        for name in self.base:
            if name in settings or name in {"task", "top_k"}:
                raise ValueError(f"The sweep itself sets {name}; leave it out of the base settings.")
        return TrainConfig.create(task=self.task, **self.base, **settings)

    def grid(self) -> Grid:
        """Return the cells, each with a configuration that has been checked."""
        num_experts = self.base.get("num_experts", TrainConfig.create(task=self.task).num_experts)
        grid = make_grid(self.axes, self.task, num_experts)
        for cell in grid.cells:
            self.config(cell)
        return grid

    def identity(self) -> dict[str, Any]:
        """Return what must not change when a sweep is resumed."""
        return {"kind": self.task, "axes": self.axes.to_dict(), "base": dict(self.base)}


def run_sweep(
    plan: SweepPlan, directory: Path, *, resume: bool = False, reporter: Reporter | None = None
) -> list[dict[str, Any]]:
    """Run what is left of a sweep in a folder and return the rows of its table.

    Finished cells are kept, an interrupted one goes on from its checkpoint. The table on disk grows with each cell.

    Raises:
        ValueError: the folder holds another sweep, or this one and `resume` is False.
        Interrupted: Ctrl-C or SIGTERM; the sweep can be resumed.

    Example:
        >>> import tempfile
        >>> axes = Axes(top_k=(1,), router=("topk",), balance=("none",), seeds=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = run_sweep(SweepPlan("image", axes, {"steps": 2}), Path(folder, "sweep"))
        >>> [(row["router"], row["top_k"], row["seeds"]) for row in rows]
        [('topk', 1, 1)]
    """
    reporter = reporter or SilentReporter()
    grid = plan.grid()
    earlier = claim_sweep(plan, directory, resume=resume)
    description = {
        "schema": SCHEMA,
        "name": directory.name,
        **plan.identity(),
        "command": plan.command,
        "skipped": list(grid.skipped),
        "software": software(),
        "started": earlier.get("started", now()),
        "finished": False,
    }
    write_json(directory / "sweep.json", description)
    left = [cell for cell in grid.cells if not RunDirectory(directory / "cells" / cell.id).is_done()]
    reporter.runs(len(grid.cells), len(grid.cells) - len(left))
    rows = _table_of(directory, plan)
    for cell in left:
        run = RunOptions(resume=True, reporter=reporter, title=cell.title, extra={"cell": cell.to_dict()})
        train(plan.config(cell), directory / "cells" / cell.id, run)
        rows = _table_of(directory, plan)
    write_json(directory / "sweep.json", {**description, "finished": True})
    return rows


def claim_sweep(plan: SweepPlan, directory: Path, *, resume: bool) -> dict[str, Any]:
    """Check that a sweep may write into a folder; return the description of the one that is there, if any.

    Raises:
        ValueError: the folder holds something else, another sweep, or this one and `resume` is False.
    """
    path = directory / "sweep.json"
    if not path.is_file():
        if directory.exists() and any(directory.iterdir()):
            raise ValueError(f"{directory} holds files but no sweep; choose an empty folder.")
        return {}
    if not resume:
        raise ValueError(f"{directory} already holds a sweep. Continue it with --resume, or choose another --output.")
    found = read_json(path)
    for name, value in plan.identity().items():
        if found.get(name) != value:
            raise ValueError(
                f"The sweep in {directory} was started with other settings, so it can't be continued with these: "
                f"{name} is {json.dumps(value)} here, {json.dumps(found.get(name))} there. "
                "Use the same settings, or another --output."
            )
    return found


def finished_rows(plan: SweepPlan, directory: Path) -> list[dict[str, Any]]:
    """Return the rows of the cells that are finished, in the order of the axes.

    Raises:
        FileNotFoundError: no sweep here.
    """
    return make_rows(read_runs(directory, [cell.id for cell in plan.grid().cells]))


def _table_of(directory: Path, plan: SweepPlan) -> list[dict[str, Any]]:
    (directory / "cells").mkdir(exist_ok=True)
    rows = finished_rows(plan, directory)
    write_table(directory, rows)
    return rows
