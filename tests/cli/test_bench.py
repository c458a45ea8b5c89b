"""`moegate bench`: what it runs, prints and writes, and how it ends."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from moegate.bench.cases import Case, Entry, Variant
from moegate.bench.suites.suite import Suite
from moegate.bench.tables import tell_cases
from moegate.cli import bench as verb
from moegate.cli.shell import app

WIDE = {"TERMINAL_WIDTH": "160", "COLUMNS": "160", "NO_COLOR": "1"}


def is_one(result):
    return None if result == 1 else f"got {result}"


def small_suite(ours=lambda: 1, peer=lambda: 1):
    variants = (Variant("moegate", ours, ours=True), Variant("PyTorch", peer))
    case = Case("small", {"T": 1}, "nothing", variants, is_one)
    entries = [Entry("small T=1", lambda: case), Entry("small T=1", lambda: case, quick=True)]
    return Suite("gate", lambda: entries, partial(tell_cases, title="Gate"), lambda rows, base: [])


@pytest.fixture
def suite(monkeypatch):
    def use(found):
        monkeypatch.setattr(verb, "load_suite", lambda name: replace(found, name=name))

    use(small_suite())
    return use


def run(*arguments, code=0):
    shown = CliRunner(env=WIDE).invoke(app, ["bench", *arguments])
    assert shown.exit_code == code, shown.output
    return shown.output


def rows_in(folder, name="gate"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_help_teaches(suite):
    output = run("--help")
    suites = ("gate", "plan", "layer", "topk", "ablation", "all")
    gpu = (
        "--device",
        "--all",
        "--seconds",
        "rehearsal",
        "MOEGATE_PEERS",
        "cuda.md",
        "checks, gate, plan, layer, decode",
    )
    for text in (*suites, *gpu, "--threads", "--quick", "--resume", "Ctrl-C", "Examples"):
        assert text in output


def test_a_run_prints_a_table_and_writes_results(suite, tmp_path):
    output = run("gate", "--quick", "--output", str(tmp_path), "--threads", "1")
    assert "1 thread" in output
    assert "PyTorch" in output
    assert "[1/1] small T=1, 1 threads" in output
    (row,) = rows_in(tmp_path)
    assert row["threads"] == 1
    assert "| PyTorch |" in (tmp_path / "gate.md").read_text()


def test_what_is_wrong_is_said_and_not_timed(suite, tmp_path):
    suite(small_suite(peer=lambda: 3))
    output = run("gate", "--quick", "-o", str(tmp_path), "--threads", "1")
    assert "Not timed: PyTorch at small T=1: wrong: got 3." in output
    assert "min_us" not in rows_in(tmp_path)[0]["variants"]["PyTorch"]


def test_a_wrong_result_of_moegate_fails_the_command(suite, tmp_path):
    suite(small_suite(ours=lambda: 3))
    assert "Not timed: moegate" in run("gate", "--quick", "-o", str(tmp_path), "--threads", "1", code=1)


def test_an_interruption_prints_what_there_is_and_says_how_to_go_on(suite, tmp_path, monkeypatch):
    from moegate.bench import running

    right = running.measure

    def stops_at_two(case, threads, *rest):
        if threads == 2:
            raise KeyboardInterrupt
        return right(case, threads, *rest)

    monkeypatch.setattr(running, "measure", stops_at_two)
    monkeypatch.setattr(verb, "_usable", lambda numbers, console: numbers)
    output = run("gate", "--quick", "-o", str(tmp_path), code=130)
    assert "1 thread" in output
    assert "--resume measures the rest" in output
    assert [row["threads"] for row in rows_in(tmp_path)] == [1]


def test_no_more_threads_than_cores(suite, tmp_path, monkeypatch):
    monkeypatch.setattr("moegate.cli.machine_facts.usable_cores", lambda: 1)
    output = run("gate", "--quick", "-o", str(tmp_path), "--threads", "1,2")
    assert "This process may use 1 cores; measuring with 1 threads." in output
    assert [row["threads"] for row in rows_in(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gate", "--only", "none of them"], "No case has 'none of them' in its name; gate has small T=1."),
        (["gate", "--threads", "0"], "whole number of at least 1"),
        (["gate", "--threads", "two"], "whole number of at least 1"),
    ],
)
def test_what_is_refused(suite, tmp_path, arguments, said):
    assert said in run(*arguments, "-o", str(tmp_path), code=2)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suite_is_a_sentence(tmp_path):
    assert "choose one of gate, plan, layer, topk, ablation, or all" in run("gates", "-o", str(tmp_path), code=2)


def test_outside_a_clone_results_go_to_a_folder_here(suite, tmp_path, monkeypatch):
    monkeypatch.setattr("moegate.bench.machine.checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    run("gate", "--quick", "--threads", "1")
    assert len(rows_in(tmp_path / "moegate-bench")) == 1


class Process:
    """Stands for the process of a suite; the exit codes are given."""

    started: ClassVar[list[list[str]]]
    codes: ClassVar[dict[str, int]]

    def __init__(self, command):
        Process.started.append(command)
        self._name = command[4]

    def wait(self):
        return Process.codes.get(self._name, 0)


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(Process, "started", [], raising=False)
    monkeypatch.setattr(Process, "codes", {}, raising=False)
    monkeypatch.setattr(verb.subprocess, "Popen", Process)
    return Process


def test_all_runs_every_suite_in_a_process_of_its_own_with_the_same_options(processes, tmp_path):
    run("all", "--quick", "-o", str(tmp_path), "--threads", "1", "--without", "all, vllm")
    assert [command[4] for command in processes.started] == ["gate", "plan", "layer", "topk", "ablation"]
    for command in processes.started:
        assert command[:4] == [sys.executable, "-m", "moegate", "bench"]
        assert {"--quick", "--threads=1", f"--output={tmp_path}", "--without=all, vllm"} <= set(command)
        assert "--resume" not in command


def test_all_leaves_out_suites_without_such_a_case(processes, tmp_path):
    run("all", "--only", "topk N=8 k=8", "-o", str(tmp_path))
    assert [command[4] for command in processes.started] == ["topk"]


def test_all_goes_on_after_a_failure_and_reports_it(processes, tmp_path):
    processes.codes = {"plan": 1}
    run("all", "--quick", "-o", str(tmp_path), code=1)
    assert len(processes.started) == 5


def test_all_stops_when_a_suite_was_interrupted(processes, tmp_path):
    processes.codes = {"plan": 130}
    run("all", "--quick", "-o", str(tmp_path), code=130)
    assert [command[4] for command in processes.started] == ["gate", "plan"]


def test_ctrl_c_of_a_real_run_keeps_its_rows(tmp_path):
    command = [sys.executable, "-m", "moegate", "bench", "topk", "--threads", "1", "--rounds", "3", "-o", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    kept = tmp_path / "topk.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (kept.exists() and kept.read_text().count("\n") >= 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume measures the rest" in output
    assert len(rows_in(tmp_path, "topk")) >= 2
    assert (tmp_path / "topk.md").exists()


def test_a_gpu_has_a_sitting_of_its_own(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("moegate.bench.gpu.verb.bench_on_device", lambda *where, **how: given.append((where, how)) or 0)
    run("--device", "cuda", "--all", "--only", "plan", "-o", str(tmp_path), "--seconds", "60")
    run("gate", "--device", "cuda")
    assert given == [
        (("all", "cuda"), {"seconds": 60.0, "only": "plan", "output": tmp_path}),
        (("gate", "cuda"), {"seconds": 420.0, "only": "", "output": None}),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gate", "--device", "cuda", "--threads", "1"], "--threads is an option of the CPU's benchmarks"),
        (["gate", "--device", "cuda", "--quick"], "--quick is an option of the CPU's benchmarks"),
        (["gate", "--device", "tpu"], "There is no device 'tpu': choose cuda, or rehearsal"),
        (["gates", "--device", "cuda"], "choose one of checks, gate, plan, layer, decode, more, or all"),
        (["--device", "cuda"], "Name a suite, or --all for every one"),
        ([], "Name a suite, or --all for every one"),
        (["gate", "--all"], "--all is every suite, and you named gate"),
    ],
)
def test_what_is_refused_of_devices(arguments, said):
    assert said in run(*arguments, code=2)


def test_all_suites_by_the_option(processes, tmp_path):
    run("--all", "--quick", "-o", str(tmp_path))
    assert [command[4] for command in processes.started] == ["gate", "plan", "layer", "topk", "ablation"]
