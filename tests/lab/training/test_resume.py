"""A run that was stopped and resumed ends exactly where an uninterrupted one does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from moegate.lab.logging import read_metrics
from moegate.lab.training import Interrupted, RunOptions, TrainConfig, loop, train
from moegate.lab.training.checkpoint import load_checkpoint
from moegate.lab.training.progress import SilentReporter, StepReport

TIMES = {"tokens_per_second", "inference_tokens_per_second"}

RECIPES: dict[str, dict[str, Any]] = {
    "switch, jitter and drops": {"router": "switch", "balance": "aux"},
    "learned noise, both losses": {"router": "noisy_topk", "balance": "importance_load", "z_loss": 1e-3},
    "sign bias, accumulation": {"balance": "sign_bias", "accumulate": 2},
    "quantile": {"balance": "quantile"},
    "pid": {"balance": "pid"},
    "annealed Gumbel noise": {"router": "gumbel"},
    "random routing": {"router": "random"},
    "dense control": {"control": "dense"},
    "text": {"task": "text", "router": "deepseek_v3", "balance": "sign_bias"},
}


class Stop(Exception):
    """Stands for a crash."""


class CrashAt(SilentReporter):
    def __init__(self, step: int) -> None:
        self.step = step

    def advance(self, report: StepReport) -> None:
        if report.step == self.step:
            raise Stop


class SignalAt(CrashAt):
    def advance(self, report: StepReport) -> None:
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMES}


def assert_same_run(one: Path, other: Path) -> None:
    for left, right in zip(read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl"), strict=True):
        assert without_times(left) == without_times(right)
    evaluations = [json.loads((path / "evaluation.json").read_text()) for path in (one, other)]
    assert without_times(evaluations[0]) == without_times(evaluations[1])
    left, right = (load_checkpoint(path / "checkpoint.safetensors") for path in (one, other))
    assert left.metadata == right.metadata
    assert left.tensors.keys() == right.tensors.keys()
    for name, tensor in left.tensors.items():
        if name != "step_seconds":
            assert torch.equal(tensor, right.tensors[name]), name


@pytest.mark.parametrize("name", RECIPES)
def test_after_a_crash_the_run_ends_with_the_same_numbers(name: str, tmp_path: Path, tiny: Any) -> None:
    config = tiny(**RECIPES[name])
    train(config, tmp_path / "whole")
    # The checkpoint is at step 8; the log has a line of step 9, which the resumed run must write anew.
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", RunOptions(reporter=CrashAt(10)))
    assert read_metrics(tmp_path / "cut" / "metrics.jsonl")[-1]["step"] == 9
    train(config, tmp_path / "cut", RunOptions(resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert [record["step"] for record in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [3, 6, 9, 11]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path, tiny: Any) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(tiny(seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "three")


def test_ctrl_c_writes_a_checkpoint_of_that_step(tmp_path: Path, tiny: Any) -> None:
    config = tiny()
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match="step 6") as stopped:
        train(config, tmp_path / "cut", RunOptions(reporter=SignalAt(6)))
    assert stopped.value.step == 6
    assert load_checkpoint(tmp_path / "cut" / "checkpoint.safetensors").metadata["step"] == 6
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "running"
    train(config, tmp_path / "cut", RunOptions(resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_handlers_of_signals_are_put_back(tmp_path: Path, tiny: Any) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(tiny(steps=1), tmp_path / "run")
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "cut", RunOptions(reporter=SignalAt(2)))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, tiny: Any) -> None:
    class Twice(SilentReporter):
        def advance(self, report: StepReport) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", RunOptions(reporter=Twice()))


def wait_for_step(step: int, checkpoint: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not (checkpoint.is_file() and load_checkpoint(checkpoint).metadata["step"] >= step):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        time.sleep(0.002)


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path: Path, tiny: Any) -> None:
    config = tiny(steps=2_000, checkpoint_every=3, num_layers=1, batch_size=8)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(config.to_dict()))
    command = ["train", "--config", str(path), "--output", str(tmp_path / "cut"), "--threads", "1"]
    checkpoint = tmp_path / "cut" / "checkpoint.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "moegate.cli", *command], stdout=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            wait_for_step(30, checkpoint, process)
        finally:
            process.kill()
    saved = load_checkpoint(checkpoint)
    assert saved.metadata["step"] % 3 == 0
    # The whole run would take long: train both up to the checkpoint's step and compare the state there.
    with pytest.raises(Stop):
        train(config, tmp_path / "whole", RunOptions(reporter=CrashAt(saved.metadata["step"] + 1)))
    expected = load_checkpoint(tmp_path / "whole" / "checkpoint.safetensors")
    assert expected.metadata == saved.metadata
    for name, tensor in expected.tensors.items():
        if name != "step_seconds":
            assert torch.equal(tensor, saved.tensors[name]), name
    stop = saved.metadata["step"] + 7
    for run in ("cut", "whole"):
        with pytest.raises(Stop):
            train(config, tmp_path / run, RunOptions(resume=True, reporter=CrashAt(stop)))
    logs = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("cut", "whole")]
    assert [without_times(record) for record in logs[0]] == [without_times(record) for record in logs[1]]


def test_a_half_written_log_line_is_written_anew(tmp_path: Path, tiny: Any) -> None:
    config = tiny()
    train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", RunOptions(reporter=CrashAt(10)))
    log = tmp_path / "cut" / "metrics.jsonl"
    log.write_text(log.read_text()[:-20])
    train(config, tmp_path / "cut", RunOptions(resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_crash_before_the_first_checkpoint_starts_over(tmp_path: Path, tiny: Any) -> None:
    config = tiny()
    train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", RunOptions(reporter=CrashAt(3)))
    train(config, tmp_path / "cut", RunOptions(resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_crash_in_the_evaluation_trains_no_step_again(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *args: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            train(config, tmp_path / "cut")
    steps: list[int] = []

    class Count(SilentReporter):
        def advance(self, report: StepReport) -> None:
            steps.append(report.step)

    train(config, tmp_path / "cut", RunOptions(resume=True, reporter=Count()))
    assert steps == []
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_only_read(tmp_path: Path, tiny: Any) -> None:
    first = train(tiny(), tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert train(tiny(), tmp_path / "run", RunOptions(resume=True)) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_another_configuration_is_refused_by_name(tmp_path: Path, tiny: Any) -> None:
    train(tiny(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"top_k: 4 here, 2 there; seed: 1 here, 0 there.*another --output"):
        train(tiny(top_k=4, seed=1), tmp_path / "run", RunOptions(resume=True))


def test_other_data_are_refused(tmp_path: Path, tiny: Any, corpus: Path) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    config = tiny("text", corpus=str(copy))
    with pytest.raises(Stop):
        train(config, tmp_path / "run", RunOptions(reporter=CrashAt(5)))
    text = copy / "words" / "00.txt"
    text.write_text(text.read_text().replace("one", "eno"))
    with pytest.raises(ValueError, match="started with other data"):
        train(config, tmp_path / "run", RunOptions(resume=True))


def test_other_software_is_warned_of(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(Stop):
        train(tiny(), tmp_path / "run", RunOptions(reporter=CrashAt(5)))
    path = tmp_path / "run" / "run.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "software": {**described["software"], "threads": 64}}))
    with pytest.warns(UserWarning, match=r"threads 64 → 1: its numbers may differ"):
        train(tiny(), tmp_path / "run", RunOptions(resume=True))


def test_a_run_is_never_written_over_unasked(tmp_path: Path, tiny: Any) -> None:
    train(tiny(steps=1), tmp_path / "run")
    with pytest.raises(ValueError, match=r"already holds a run.*--resume"):
        train(tiny(steps=1), tmp_path / "run")


def test_a_folder_of_other_files_is_refused(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds files but no run"):
        train(tiny(steps=1), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(Stop):
        train(tiny(), tmp_path / "run", RunOptions(reporter=CrashAt(10)))
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        train(tiny(), tmp_path / "run", RunOptions(resume=True))


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path, tiny: Any) -> None:
    for name, layers in (("one", 1), ("two", 2)):
        with pytest.raises(Stop):
            train(tiny(num_layers=layers), tmp_path / name, RunOptions(reporter=CrashAt(5)))
    (tmp_path / "one" / "checkpoint.safetensors").replace(tmp_path / "two" / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="belongs to another model"):
        train(tiny(num_layers=2), tmp_path / "two", RunOptions(resume=True))


def test_training_leaves_the_global_random_state_alone(tmp_path: Path, tiny: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny(steps=1), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_initial_weights_come_from_the_seed_alone(tiny: Any) -> None:
    config: TrainConfig = tiny()
    weights = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        weights.append(loop.initial_state(config).model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
