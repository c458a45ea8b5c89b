import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from moegate.cli import app
from moegate.lab.training import Interrupted, progress


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["sweep", *map(str, arguments)])


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"batch_size": 16, "num_layers": 2}))
    return path


def test_a_sweep_prints_its_table_and_writes_it(
    tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "sweep"
    monkeypatch.setattr(sys, "argv", ["/some/where/moegate", "sweep", "--top-k", "1,8"])
    result = call(
        "--top-k", "1,8", "--router", "topk,hash", "--balance", "none,quantile", "--seeds", 2,
        "--controls", "dense,frozen", "--steps", 2, "--config", settings, "--set", "num_layers=1",
        "--output", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for text in ("dense control", "topk, frozen gate", "hash", "quantile", " ± ", "MaxVio"):
        assert text in result.output
    assert "Left out: balance 'quantile' has nothing to balance where K is all 8 experts" in result.output
    rows = json.loads((output / "table.json").read_text())["rows"]
    assert len(rows) == 3 + 2 + 2 + 2
    assert (output / "table.csv").is_file()
    sweep = json.loads((output / "sweep.json").read_text())
    assert sweep["command"] == "moegate sweep --top-k 1,8"
    assert sweep["base"] == {"batch_size": 16, "num_layers": 1, "steps": 2}


def test_an_interrupted_sweep_shows_what_there_is_and_resumes(
    tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--top-k", "1,2", "--seeds", 1, "--steps", 2, "--config", settings, "-o", tmp_path / "sweep")
    with monkeypatch.context() as patch:
        original = progress.LineReporter.start

        def start(self: progress.LineReporter, title: str, total_steps: int, done_steps: int) -> None:
            if "K=2" in title:
                raise Interrupted(0)
            original(self, title, total_steps, done_steps)

        patch.setattr(progress.LineReporter, "start", start)
        stopped = call(*arguments)
    assert stopped.exit_code == 130
    assert "so far" in stopped.output
    assert "--resume" in stopped.output
    assert call(*arguments).exit_code != 0
    resumed = call(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "[2/2]" in resumed.output
    assert "[1/2]" not in resumed.output


def test_a_failed_run_is_listed_after_the_table_and_ends_in_an_error(
    tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--top-k", "1,2", "--seeds", 1, "--steps", 2, "--config", settings, "-o", tmp_path / "sweep")
    with monkeypatch.context() as patch:

        def fail(self: progress.LineReporter, title: str, total_steps: int, done_steps: int) -> None:
            if "K=1" in title:
                raise ValueError("The loss of step 1 is nan.")

        patch.setattr(progress.LineReporter, "start", fail)
        result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert "Failed: topk-k1-aux-s0: The loss of step 1 is nan." in result.output
    assert "--resume" in result.output
    rows = json.loads((tmp_path / "sweep" / "table.json").read_text())["rows"]
    assert [row["top_k"] for row in rows] == [2]
    again = call(*arguments, "--resume")
    assert again.exit_code == 0, again.output
    assert "Failed" not in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top-k", "1,two"), "--top-k 1,two: 'two' must be a whole number"),
        (("--router", "topk,swich"), "Did you mean 'switch'"),
        (("--controls", "dense,thawed"), "Unknown control 'thawed'"),
        (("--seeds", "0"), "seeds=0 must be at least 1"),
        (("--router", ""), "The axis router is empty"),
        (("--set", "steps"), "--set steps: write it as NAME=VALUE"),
        (("--set", "seed=1"), "The sweep itself sets seed"),
        (("--set", "corpus=texts"), "corpus=texts has no effect on the task 'image'"),
        (("--controls", "boht"), "Did you mean 'both'"),
        (("--at-inference", "runs/a", "--router", "topk"), "trains nothing and writes nothing; leave out"),
    ],
)
def test_mistakes_get_a_sentence_before_anything_is_trained(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = call("--output", tmp_path / "sweep", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert not (tmp_path / "sweep").exists()


def test_at_inference_names_every_flag_that_it_would_ignore() -> None:
    result = call("--at-inference", "runs/a", "--top-k", "1,2", "--seeds", 3, "--steps", 5, "--resume")
    assert result.exit_code == 2
    assert "leave out --seeds, --steps, --resume." in result.output
    alone = call("--at-inference", "runs/a", "--top-k", "1,2")
    assert "leave out" not in alone.output
    assert "runs/a holds no finished run" in alone.output
