"""K at inference: the trained model with another rule, and nothing else changed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from moegate import recipes
from moegate.cli import app
from moegate.lab.sweep.inference import sweep_at_inference, with_top_k
from moegate.lab.training import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        train(tiny(seed=seed, steps=40), folder / f"s{seed}")
    return [folder / f"s{seed}" for seed in range(3)]


def test_at_the_trained_k_the_evaluation_is_that_of_the_training(runs: list[Path]) -> None:
    trained = json.loads((runs[0] / "evaluation.json").read_text())
    row = sweep_at_inference(runs[:1], (2,))[0]
    for name in ("value", "utilization", "max_violation", "drop_rate"):
        assert row[name] == trained[name]
    assert row["value_ci95"] is None


def test_k_changes_the_experts_that_are_used(runs: list[Path]) -> None:
    rows = sweep_at_inference(runs[:1], (1, 2, 8))
    assert rows[2]["max_violation"] == 0.0
    assert len({row["value"] for row in rows}) > 1


def test_runs_are_averaged_with_an_interval(runs: list[Path]) -> None:
    values = [sweep_at_inference([run], (1,))[0]["value"] for run in runs]
    row = sweep_at_inference(runs, (1,))[0]
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["value_ci95"] == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(values))
    assert row["runs"] == 3


def test_runs_that_have_no_k_or_differ_are_refused(runs: list[Path], tmp_path: Path, tiny: Any) -> None:
    train(tiny(control="dense"), tmp_path / "dense")
    train(tiny(top_k=1), tmp_path / "other")
    for paths, message in (
        ([], "at least one trained run"),
        ([tmp_path / "none"], "no finished run"),
        ([tmp_path / "dense"], "dense control"),
        ([runs[0], tmp_path / "other"], "differ in metric or in the K"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep_at_inference(paths, (1,))
    with pytest.raises(ValueError, match="top_k=9 exceeds"):
        sweep_at_inference(runs[:1], (9,))


def test_only_k_changes_in_the_rule() -> None:
    rule = recipes.deepseek_v3(top_k=8)
    changed = with_top_k(rule, 4)
    assert changed != rule
    assert with_top_k(changed, 8) == rule
    with pytest.raises(ValueError, match=r"TopP.* has no fixed K"):
        with_top_k(recipes.top_p(), 4)


def test_the_verb_prints_the_table(runs: list[Path]) -> None:
    arguments = ["sweep", "--top-k", "1,2,4"]
    for run in runs:
        arguments += ["--at-inference", str(run)]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "trained with K=2" in result.output
    assert result.output.count("±") == 6
    missing = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["sweep", "--top-k", "1"])
    assert "--output DIR" in missing.output
