"""From finished runs to the table: one row a variant, means and intervals over its seeds."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moegate.lab.sweep.intervals import estimate
from moegate.lab.training.checkpoint import write_whole
from moegate.lab.training.run_directory import RunDirectory, read_json, write_json

COLUMNS = (
    "router", "top_k", "balance", "control", "seeds", "metric", "mean", "ci95", "tokens_per_second",
    "tokens_per_second_ci95", "inference_tokens_per_second", "experts_per_token", "utilization",
    "max_violation", "drop_rate", "parameters", "active_parameters", "causal",
)  # fmt: skip

MEANS = ("inference_tokens_per_second", "experts_per_token", "utilization", "max_violation", "drop_rate")

Run = tuple[Mapping[str, Any], Mapping[str, Any]]


def read_runs(directory: Path) -> list[Run]:
    """Return `(run.json, evaluation.json)` of each finished cell of a sweep, in the order of their names.

    Raises:
        FileNotFoundError: no sweep here.
    """
    folder = directory / "cells"
    if not folder.is_dir():
        raise FileNotFoundError(f"No sweep in {directory}: it has no folder 'cells'.")
    runs = [RunDirectory(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    return [(run.read_description(), read_json(run.evaluation)) for run in runs if run.is_done()]


def make_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return a row for each variant: what differs only in the seed is averaged.

    `ci95` is the half width of the 95 % interval of the mean over seeds, None for one seed. `top_k` is the most
    experts a token may visit, `experts_per_token` how many it did. Balance columns are None for dense controls,
    which route nothing.

    Example:
        >>> make_rows([])
        []
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for described, evaluation in runs:
        cell = described["cell"]
        key = (cell["control"] or "", cell["router"], cell["balance"], cell["top_k"] or 0)
        groups.setdefault(key, []).append((described, evaluation))
    return [_row(groups[key]) for key in sorted(groups)]


def _row(runs: Sequence[Run]) -> dict[str, Any]:
    described, evaluation = runs[0]
    cell = described["cell"]
    value = estimate([found["value"] for _, found in runs])
    speed = estimate([found["tokens_per_second"] for _, found in runs])
    return {
        **{name: cell[name] for name in ("router", "balance", "control")},
        "top_k": described["top_k"],
        "seeds": len(runs),
        "metric": evaluation["metric"],
        "mean": value.mean,
        "ci95": value.ci,
        "tokens_per_second": speed.mean,
        "tokens_per_second_ci95": speed.ci,
        **{name: _mean([found[name] for _, found in runs]) for name in MEANS},
        **{name: described[name] for name in ("parameters", "active_parameters", "causal")},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return estimate(known).mean if known else None


def write_table(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `table.json` and `table.csv` into a sweep's folder, each whole or not at all.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(Path(folder), [])
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['table.csv', 'table.json']
    """
    write_json(directory / "table.json", {"rows": list(rows)})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(directory / "table.csv", buffer.getvalue().encode())
