import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from moegate.cli import app, demo
from moegate.lab.training import Interrupted, TrainConfig, progress


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    for domain in ("a", "b"):
        (tmp_path / "corpus" / domain).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "corpus" / domain / f"{number}.txt").write_text(f"{domain} {number} " * 80)
    return str(tmp_path / "corpus")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, corpus: str) -> None:
    """A demo on a small corpus."""
    sizes = {"num_layers": 1, "batch_size": 2, "sequence_length": 32, "evaluation_windows": 2}
    monkeypatch.setattr(demo, "LANGUAGE_MODEL", {**sizes, "corpus": corpus})


def call(output: Path) -> Result:
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    arguments = ["--seeds", "2", "--image-steps", "2", "--text-steps", "3", "--output", str(output)]
    return runner.invoke(app, ["demo", *arguments])


@pytest.mark.usefixtures("small")
def test_the_demo_ends_with_the_table_and_the_page_and_goes_on_when_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "demo"
    with monkeypatch.context() as patch:

        def interrupt(self: object, title: str, total_steps: int, done_steps: int) -> None:
            if "K=4" in title:
                raise Interrupted(0)

        patch.setattr(progress.LineReporter, "start", interrupt)
        stopped = call(output)
    assert stopped.exit_code == 130
    assert not (output / "report.html").exists()
    result = call(output)
    assert result.exit_code == 0, result.output
    assert "[1/24]" not in result.output
    rows = json.loads((output / "k_sweep" / "table.json").read_text())["rows"]
    assert [row["top_k"] for row in rows if row["control"] is None] == [1, 2, 4, 8]
    assert {row["control"] for row in rows} == {None, "dense", "frozen"}
    page = (output / "report.html").read_text()
    assert "k_sweep" in page
    last = result.output.strip().splitlines()[-1]
    assert str((output / "report.html").resolve()) in last
    assert "dense control" in result.output
    again = call(output)
    assert again.exit_code == 0
    assert "steps" not in again.output.replace("--", "")


@pytest.mark.usefixtures("small")
def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    config = TrainConfig.create(task="text", steps=3, seed=7, **demo.LANGUAGE_MODEL)
    (output / "language_model").mkdir(parents=True)
    described = {"schema": 1, "status": "running", "config": config.to_dict(), "software": {}}
    (output / "language_model" / "run.json").write_text(json.dumps(described))
    result = call(output)
    assert result.exit_code != 0
    assert "seed: 0 here, 7 there" in " ".join(result.output.split())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seeds", "seeds=0 must be at least 1"),
        ("--image-steps", "steps=0 must be at least 1"),
        ("--text-steps", "steps=0 must be at least 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_anything_is_trained(
    option: str, message: str, tmp_path: Path
) -> None:
    arguments = ["--image-steps", "2", "--text-steps", "3", "--output", str(tmp_path / "demo"), option, "0"]
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["demo", *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not (tmp_path / "demo").exists()


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="x"), demo.one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError("x")
    assert torch.get_num_threads() == before


def test_the_real_demo_is_a_configuration_that_can_run() -> None:
    assert TrainConfig.create(task="text", steps=1, **demo.LANGUAGE_MODEL).num_experts == 8
