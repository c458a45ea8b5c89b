"""The runs of a sweep: one cell after the other, each resumable, none done twice."""

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
    A cell that can't be trained to its end, such as one whose loss diverges, is noted in `sweep.json` and the sweep
    goes on; it then isn't finished, and the next call tries that cell again.

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
    description = _describe(plan, directory, grid, claim_sweep(plan, directory, resume=resume))
    write_json(directory / "sweep.json", description)
    left = [cell for cell in grid.cells if not RunDirectory(directory / "cells" / cell.id).is_done()]
    reporter.runs(len(grid.cells), len(grid.cells) - len(left))
    rows = _table_of(directory, plan)
    failed: dict[str, str] = {}
    for cell in left:
        problem = _train_cell(plan, cell, directory, reporter)
        if problem is None:
            rows = _table_of(directory, plan)
        else:
            failed[cell.id] = problem
            reporter.finish(f"failed: {problem}")
            write_json(directory / "sweep.json", {**description, "failed": failed})
    write_json(directory / "sweep.json", {**description, "failed": failed, "finished": not failed})
    return rows


def failed_cells(directory: Path) -> dict[str, str]:
    """Return why each cell failed that the last call to `run_sweep` couldn't train to its end, by the cell's id.

    Raises:
        FileNotFoundError: no sweep here.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "sweep.json"), {"failed": {"topk-k2-aux-s0": "The loss of step 3 is nan."}})
        ...     failed_cells(Path(folder))
        {'topk-k2-aux-s0': 'The loss of step 3 is nan.'}
    """
    return dict(read_json(directory / "sweep.json").get("failed", {}))


def _describe(plan: SweepPlan, directory: Path, grid: Grid, earlier: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": directory.name,
        **plan.identity(),
        "command": plan.command,
        "skipped": list(grid.skipped),
        "failed": {},
        "software": software(),
        "started": earlier.get("started", now()),
        "finished": False,
    }


def _train_cell(plan: SweepPlan, cell: Cell, directory: Path, reporter: Reporter) -> str | None:
    """Train what is left of a cell; return the sentence that says why it can't be, or None."""
    run = RunOptions(resume=True, reporter=reporter, title=cell.title, extra={"cell": cell.to_dict()})
    try:
        train(plan.config(cell), directory / "cells" / cell.id, run)
    except ValueError as error:
        return str(error)
    return None


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
    differences = _differences(plan.identity(), found)
    if differences:
        raise ValueError(
            f"The sweep in {directory} was started with other settings, so it can't be continued with these: "
            f"{'; '.join(differences)}. Use the same settings, or another --output."
        )
    return found


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """A readable line for each axis or setting that differs, and for the kind."""
    mine, theirs = ({"kind": one.get("kind"), **one.get("axes", {}), **one.get("base", {})} for one in (here, there))
    absent = "nothing"
    return [
        f"{name}: {_shown(mine.get(name, absent))} here, {_shown(theirs.get(name, absent))} there"
        for name in dict.fromkeys((*mine, *theirs))
        if mine.get(name, absent) != theirs.get(name, absent)
    ]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


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
