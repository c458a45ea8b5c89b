import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from moegate.cli import app, train
from moegate.lab.logging import read_metrics
from moegate.lab.training import progress
from moegate.lab.training.balancing import STRATEGIES
from moegate.lab.training.config import TASK_DEFAULTS
from moegate.lab.training.routers import router_names

TINY = ("--task", "image", "--steps", "4", "--batch-size", "16", "--num-layers", "1", "--checkpoint-every", "2")
WIDE = {"TERMINAL_WIDTH": "300", "COLUMNS": "300", "NO_COLOR": "1"}


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["train", *map(str, arguments)])


def test_a_run_is_trained_evaluated_and_described(tmp_path: Path) -> None:
    result = call(*TINY, "--router", "switch", "--seed", 3, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output
    assert str(tmp_path / "run") in result.output
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["status"] == "done"
    assert (described["router"], described["seed"], described["balance"]) == ("switch", 3, "aux")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["metric"] == "accuracy"


def test_help_names_every_router_and_balance_and_the_defaults_of_the_tasks() -> None:
    shown = CliRunner(env=WIDE).invoke(app, ["train", "--help"])
    words = set(re.findall(r"\w+", shown.output))
    assert {*router_names(), *STRATEGIES} <= words
    for panel in ("Model", "Router and balance", "Training", "Output"):
        assert f"─ {panel} ─" in shown.output
    for name in ("steps", "num_layers", "learning_rate"):
        row = next(line for line in shown.output.splitlines() if f" --{name.replace('_', '-')} " in line)
        for task, defaults in TASK_DEFAULTS.items():
            assert f"{defaults[name]} for {task}" in row


@pytest.mark.parametrize("example", train.EXAMPLES)
def test_the_examples_of_the_help_are_shown_and_run(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert example in CliRunner(env=WIDE).invoke(app, ["train", "--help"]).output
    monkeypatch.chdir(tmp_path)
    _, *arguments = shlex.split(example)[1:]
    small = ("--steps", 1, "--batch-size", 2, "--num-layers", 1, "--hidden-size", 16, "--evaluation-windows", 1)
    result = call(*arguments, *small)
    assert result.exit_code == 0, result.output


def test_the_folder_is_printed_as_it_is_named(tmp_path: Path) -> None:
    result = call(*TINY, "--output", tmp_path / "[red]weird")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "[red]weird") in result.output.replace("\n", "")


def test_flags_override_the_file(tmp_path: Path) -> None:
    settings = {"steps": 2, "batch_size": 16, "num_layers": 1, "top_k": 4, "router": "mixtral"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    result = call("--config", tmp_path / "settings.json", "--top-k", 1, "--router", "topk", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["top_k"], config["router"], config["batch_size"]) == (1, "topk", 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--router", "swich"), "Did you mean 'switch'"),
        (("--balance", "sign_bais"), "Did you mean 'sign_bias'"),
        (("--task", "images"), "Did you mean 'image'"),
        (("--top-k", "9"), "top_k=9 exceeds the 8 experts"),
        (("--router", "hash", "--balance", "aux"), "can't act on the router 'hash'"),
        (("--threads", "0"), "--threads 0 must be at least 1"),
        (("--logger", "wandbb"), "Did you mean 'wandb'"),
        (("--config", "none.json"), "No configuration file"),
    ],
)
def test_mistakes_get_a_sentence(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = call(*TINY, "--output", tmp_path / "run", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_run_folder_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for output in (tmp_path / "taken", tmp_path / "taken" / "run"):
        result = call(*TINY, "--output", output)
        assert result.exit_code == 2
        assert f"Can't use {tmp_path / 'taken'}" in result.output
        assert "a file is where a folder is needed" in result.output


def test_an_unknown_setting_in_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"learning_rat": 0.1}')
    result = call("--config", tmp_path / "a.json", "--output", tmp_path / "run")
    assert "Unknown setting 'learning_rat'. Did you mean 'learning_rate'" in result.output


def test_ctrl_c_says_how_to_go_on_and_resume_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(*TINY, "--output", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:

        def interrupt(self: object, report: progress.StepReport) -> None:
            if report.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(progress.LineReporter, "advance", interrupt)
        stopped = call(*TINY, "--output", tmp_path / "cut")
    assert stopped.exit_code == 130
    assert "Stopped after step 3" in stopped.output
    assert "--resume" in stopped.output
    assert call(*TINY, "--output", tmp_path / "cut").exit_code != 0
    resumed = call(*TINY, "--output", tmp_path / "cut", "--resume")
    assert resumed.exit_code == 0, resumed.output
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    assert logs[0][-1]["loss"] == logs[1][-1]["loss"]


def test_threads_are_set(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert call(*TINY, "--threads", 2, "--output", tmp_path / "run").exit_code == 0
        software = json.loads((tmp_path / "run" / "run.json").read_text())["software"]
        assert software["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_a_language_model_of_the_users_own_text(tmp_path: Path) -> None:
    for domain in ("a", "b"):
        (tmp_path / "corpus" / domain).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "corpus" / domain / f"{number}.txt").write_text(f"{domain} {number} " * 40)
    sizes = ("--steps", 2, "--batch-size", 2, "--num-layers", 1, "--sequence-length", 16, "--hidden-size", 16)
    result = call("--task", "text", "--corpus", tmp_path / "corpus", *sizes, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["domains"] == ["a", "b"]
    assert 7 < evaluation["value"] < 9
