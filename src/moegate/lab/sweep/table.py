"""From finished runs to the table: one row a variant, means and intervals over its seeds."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moegate.lab.sweep.intervals import Estimate, estimate
from moegate.lab.training.checkpoint import write_whole
from moegate.lab.training.run_directory import RunDirectory, read_json, write_json

COLUMNS = (
    "router", "top_k", "balance", "control", "seeds", "metric", "mean", "ci95", "difference", "difference_ci95",
    "tokens_per_second", "tokens_per_second_ci95", "inference_tokens_per_second", "experts_per_token",
    "utilization", "max_violation", "drop_rate", "parameters", "active_parameters", "causal",
)  # fmt: skip
MEANS = ("inference_tokens_per_second", "experts_per_token", "utilization", "max_violation", "drop_rate")

Run = tuple[Mapping[str, Any], Mapping[str, Any]]


def read_runs(directory: Path, cell_ids: Iterable[str] | None = None) -> list[Run]:
    """Return `(run.json, evaluation.json)` of each finished cell of a sweep, in the given order or that of their names.

    Raises:
        FileNotFoundError: no sweep here.
    """
    folder = directory / "cells"
    if not folder.is_dir():
        raise FileNotFoundError(f"No sweep in {directory}: it has no folder 'cells'.")
    names = sorted(path.name for path in folder.iterdir()) if cell_ids is None else cell_ids
    runs = [RunDirectory(folder / name) for name in names]
    return [(run.read_description(), read_json(run.evaluation)) for run in runs if run.is_done()]


def make_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return a row for each variant, in the order of their first runs: what differs only in the seed is averaged.

    `ci95` is the half width of the 95 % interval of the mean over seeds, None for one seed. `difference` is the mean
    over seeds of the score minus that of the first routed variant with the same seed: equal seeds share data order
    and, where the shapes agree, initial weights, and that noise drops out. `top_k` is the most experts a token may
    visit, `experts_per_token` how many it did. Balance columns are None for dense controls, which route nothing.

    Example:
        >>> make_rows([])
        []
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for described, evaluation in runs:
        cell = described["cell"]
        key = tuple(cell[name] for name in ("router", "top_k", "balance", "control"))
        groups.setdefault(key, []).append((described, evaluation))
    reference = next((found for key, found in groups.items() if key[-1] is None), [])
    return [_row(found, reference) for found in groups.values()]


def _row(runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, Any]:
    described, evaluation = runs[0]
    cell = described["cell"]
    value = estimate(list(_by_seed(runs).values()))
    difference = _difference(_by_seed(runs), _by_seed(reference))
    speed = estimate([found["tokens_per_second"] for _, found in runs])
    return {
        **{name: cell[name] for name in ("router", "balance", "control")},
        "top_k": described["top_k"],
        "seeds": len(runs),
        "metric": evaluation["metric"],
        "mean": value.mean,
        "ci95": value.ci,
        "difference": difference and difference.mean,
        "difference_ci95": difference and difference.ci,
        "tokens_per_second": speed.mean,
        "tokens_per_second_ci95": speed.ci,
        **{name: _mean([found[name] for _, found in runs]) for name in MEANS},
        **{name: described[name] for name in ("parameters", "active_parameters", "causal")},
    }


def _by_seed(runs: Sequence[Run]) -> dict[int, float]:
    return {described["cell"]["seed"]: evaluation["value"] for described, evaluation in runs}


def _difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """The mean difference over the seeds that both have; None for the reference itself."""
    common = sorted(values.keys() & reference.keys())
    if values == reference or not common:
        return None
    return estimate([values[seed] - reference[seed] for seed in common])


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
