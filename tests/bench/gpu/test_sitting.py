"""A sitting goes on whatever its processes do: crash, hang, give up; and ends with all that was measured."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from moegate.bench.gpu import sitting as module
from moegate.bench.gpu.entries import DECODED, SUITES
from moegate.bench.gpu.sitting import Plan, Sitting, chosen_suites

# Stands for the process of a suite; it measures one case with three peers, of which one may misbehave.
PROCESS = """
import json, os, sys, time
from pathlib import Path

folder, sitting, suite, device, seconds, only = sys.argv[1:]
rows, note = Path(folder) / "cuda.jsonl", Path(folder) / ".cuda-turn.json"
kept = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
lost = {row["lost"]["who"]: row["lost"]["reason"] for row in kept if "lost" in row}
for peer in ("right", "bad", "other"):
    turn = {"suite": suite, "key": "a", "who": peer, "step": "check", "since": time.time()}
    note.with_suffix(".x").write_text(json.dumps(turn))
    note.with_suffix(".x").replace(note)
    if peer == "bad" and peer not in lost:
        BEHAVIOUR
timing = {"median_us": 2.0, "low_us": 1.0, "high_us": 3.0, "how": "graph", "calls": 5}
variants = {name: {"ours": name == "right", **({"trouble": lost[name]} if name in lost else timing)}
            for name in ("right", "bad", "other")}
card = {"name": "some card", "multiprocessors": 1, "memory_gib": 1, "l2_mib": 1}
known = {"suite": suite, "card": card, "rehearsal": False, "versions": {}, "commit": "abc", "time": "now"}
row = {"sitting": sitting, "key": "a", "variants": variants, "ratios": {}, "missing": {}, "parts": {}, **known}
with rows.open("a") as file:
    file.write(json.dumps(row) + chr(10))
note.unlink()
"""


@pytest.fixture
def sit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.02)

    def run(behaviour, suites=("gate",), seconds=60, **more):
        script = tmp_path / "process.py"
        script.write_text(PROCESS.replace("BEHAVIOUR", behaviour))
        said = []
        plan = Plan(suites=suites, seconds=seconds, process=(str(script),), **more)
        found = Sitting(plan, tmp_path / "out", said.append)
        return found.run(), found.notebook.rows(), "\n".join(said), tmp_path / "out"

    return run


def case_rows(rows):
    return [row for row in rows if "variants" in row]


def test_a_sitting_in_which_nothing_goes_wrong(sit):
    status, rows, said, folder = sit("pass", suites=("gate", "plan"))
    assert status == 0
    assert [row["suite"] for row in rows] == ["gate", "plan"]
    assert "== gate" in said
    assert "| a | **right** | 2.00 µs | 1.00 µs to 3.00 µs |" in (folder / "cuda.md").read_text()


def test_the_note_of_an_interrupted_sitting_blames_nobody(sit, tmp_path):
    note = tmp_path / "out" / ".cuda-turn.json"
    note.parent.mkdir()
    note.write_text('{"suite": "gate", "key": "a", "who": "other", "step": "check", "since": 0}')
    status, rows, said, _ = sit("pass")
    assert (status, len(rows)) == (0, 1)
    assert "goes on without" not in said


@pytest.mark.parametrize("behaviour", ["os._exit(139)", "sys.exit(75)", "os.abort()", "raise MemoryError"])
def test_a_process_that_dies_costs_only_who_was_at_work(sit, behaviour):
    status, rows, said, folder = sit(behaviour)
    assert status == 0  # a peer is no failure of moegate
    (row,) = case_rows(rows)
    assert "median_us" in row["variants"]["other"]
    assert "its process ended with status" in row["variants"]["bad"]["trouble"]
    assert "it goes on without what was at work" in said
    assert "## Not timed" in (folder / "cuda.md").read_text()


def test_a_process_that_hangs_is_ended(sit):
    status, rows, _, _ = sit("time.sleep(1000)", stuck_seconds=0.4)
    assert status == 0
    (row,) = case_rows(rows)
    assert row["variants"]["bad"]["trouble"].endswith("s at bad: check")


def test_when_the_time_is_over_nobody_is_blamed(sit, monkeypatch):
    monkeypatch.setattr(module, "_GRACE", 0.0)
    status, rows, said, folder = sit("time.sleep(1000)", suites=("decode",), seconds=1.0)
    assert status == 1  # nothing at all was measured
    assert [row["skipped"] for row in rows] == ["the time was over"] * len(DECODED)
    assert not any("lost" in row for row in rows)
    assert "skipped, the time was over: decode decode bf16 T=1 " in said
    assert "## Not reached in time" in (folder / "cuda.md").read_text()


def test_a_process_that_never_begins_is_a_failure(tmp_path):
    broken = Plan(suites=("gate",), seconds=30, process=("-c", "import sys; sys.exit(3)"))
    said = []
    assert Sitting(broken, tmp_path / "out", said.append).run() == 1
    assert "FAILED: gate: its process ended again and again" in said


def test_an_interruption_keeps_what_there_is(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from moegate.bench.gpu.sitting import Plan, Sitting\n"
        f"plan = Plan(suites=('gate', 'plan'), seconds=60, process=({str(tmp_path / 'p.py')!r},))\n"
        f"sys.exit(Sitting(plan, Path({str(tmp_path / 'out')!r}), print).run())\n"
    )
    slow = PROCESS.replace("BEHAVIOUR", "time.sleep(0 if suite == 'gate' else 1000)")
    (tmp_path / "p.py").write_text(slow)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    kept = tmp_path / "out" / ".cuda-turn.json"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if kept.exists() and json.loads(kept.read_text())["suite"] == "plan":
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped. What was measured is kept" in said
    assert "| a | **right** |" in (tmp_path / "out" / "cuda.md").read_text()


def test_only_suites_with_a_wanted_case_get_a_process(sit):
    _, rows, _, _ = sit("pass", suites=("gate", "plan", "decode"), only=("plan T=1 ",))
    assert [row["suite"] for row in rows] == ["plan"]


def test_which_suites():
    assert chosen_suites("all") == tuple(SUITES)
    assert chosen_suites("plan") == ("plan",)
    with pytest.raises(ValueError, match="choose one of checks, gate, plan, layer, decode, more, or all"):
        chosen_suites("topk")
