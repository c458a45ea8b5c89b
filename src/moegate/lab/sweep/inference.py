"""A sweep of K at inference: a trained model, evaluated with more or fewer experts than it was trained with."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from moegate.lab.sweep.intervals import estimate
from moegate.lab.sweep.rendering import interval
from moegate.lab.training.building import routed_layers
from moegate.lab.training.checkpoint import load_checkpoint
from moegate.lab.training.config import TrainConfig
from moegate.lab.training.evaluation import evaluate
from moegate.lab.training.loop import initial_state
from moegate.lab.training.run_directory import RunDirectory
from moegate.lab.training.state import restore
from moegate.lab.training.tasks import make_task
from moegate.rule import RoutingRule
from moegate.selection import GroupedTopK, Hash, Random, TopK

MEASURED = ("value", "inference_tokens_per_second", "utilization", "max_violation", "drop_rate")


def sweep_at_inference(runs: Iterable[Path], top_k: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each K: mean and half width of the 95 % interval over the runs of what was measured.

    Raises:
        ValueError: no run, a run that isn't finished, a router without K, runs of different metrics.

    Example:
        >>> import tempfile
        >>> from moegate.lab.training import train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(TrainConfig.create(task="image", steps=2), Path(folder, "run"))
        ...     rows = sweep_at_inference([Path(folder, "run")], top_k=(1, 2))
        >>> [(row["top_k"], row["trained_top_k"], row["metric"]) for row in rows]
        [(1, 2, 'accuracy'), (2, 2, 'accuracy')]
    """
    found = [_evaluations(RunDirectory(path), top_k) for path in runs]
    if not found:
        raise ValueError("A sweep at inference needs at least one trained run.")
    if len({(rows[0]["metric"], rows[0]["trained_top_k"]) for rows in found}) > 1:
        raise ValueError("The runs differ in metric or in the K they were trained with; average alike runs only.")
    return [_averaged(rows) for rows in zip(*found, strict=True)]


def with_top_k(rule: RoutingRule, top_k: int) -> RoutingRule:
    """Return the rule with another K.

    Raises:
        ValueError: a rule whose selection has no K.

    Example:
        >>> from moegate import recipes
        >>> with_top_k(recipes.mixtral(), 4).selection.top_k
        4
    """
    if not isinstance(rule.selection, TopK | GroupedTopK | Hash | Random):
        raise ValueError(f"The selection {rule.selection!r} has no fixed K to change.")
    return rule.replace(selection=replace(rule.selection, top_k=top_k))


def _evaluations(run: RunDirectory, top_k: Sequence[int]) -> list[dict[str, Any]]:
    if not run.is_done():
        raise ValueError(f"{run.path} holds no finished run; train it first.")
    described = run.read_description()
    config = TrainConfig.create(**described["config"])
    with torch.random.fork_rng(devices=[]):
        state = initial_state(config)
        restore(state, load_checkpoint(run.checkpoint))
    layers, task = routed_layers(state.model), make_task(config)
    if not layers:
        raise ValueError(f"{run.path} is a dense control: it has no K.")
    rows = []
    for k in top_k:
        for layer in layers:
            layer.rule = with_top_k(layer.rule, k)
            layer.rule.check(config.num_experts)
        found = evaluate(state.model, task, len(layers), config.num_experts)
        fixed = {"top_k": k, "trained_top_k": described["top_k"], "metric": found["metric"]}
        rows.append({**fixed, **{name: found[name] for name in MEASURED}})
    return rows


def _averaged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    averaged = {name: rows[0][name] for name in ("top_k", "trained_top_k", "metric")}
    for name in MEASURED:
        averaged[name], averaged[f"{name}_ci95"] = estimate([row[name] for row in rows])
    return {**averaged, "runs": len(rows)}


def print_inference_table(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows; the K of the training is bold."""
    accuracy = rows[0]["metric"] == "accuracy"
    digits, scale = (2, 100.0) if accuracy else (3, 1.0)
    table = Table(title=f"K at inference; trained with K={rows[0]['trained_top_k']}", title_justify="left")
    for heading in ("K", "accuracy %" if accuracy else "bits/byte", "tokens/s", "MaxVio", "drop %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["top_k"]),
            interval(row["value"], row["value_ci95"], digits, scale),
            interval(row["inference_tokens_per_second"], row["inference_tokens_per_second_ci95"], 0),
            f"{row['max_violation']:.2f}",
            f"{100 * row['drop_rate']:.1f}",
            style="bold" if row["top_k"] == row["trained_top_k"] else "",
        )
    console.print(table)
