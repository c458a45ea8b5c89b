"""What rows say about the machine, and the peaks that floors are made of."""

import subprocess
import sys
import time

import pytest
import torch

from moegate.bench import limits, machine
from moegate.bench.memory import peak_bytes


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of a project called moegate with one commit, in which the process works."""
    for folder in ("src", "benchmarks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "moegate"\n')
    (tmp_path / "src" / "code.py").write_text("one\n")
    settings = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*settings, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(machine.moegate, "__file__", str(tmp_path / "src" / "moegate" / "__init__.py"))
    return tmp_path


def test_the_commit_is_that_of_the_clone(clone):
    shown = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, check=True, capture_output=True, text=True).stdout
    assert machine.checkout() == clone
    assert shown.startswith(machine.commit())
    assert len(machine.commit()) == 12


def test_changed_code_marks_the_commit_and_results_do_not(clone):
    (clone / "benchmarks" / "gate.jsonl").write_text("{}\n")
    assert not machine.commit().endswith("-dirty")
    (clone / "src" / "new.py").write_text("two\n")
    assert machine.commit().endswith("-dirty")


def test_an_installed_package_has_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.moegate, "__file__", str(tmp_path / "site-packages" / "moegate" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    assert machine.checkout() is None
    assert machine.commit() == machine.moegate.__version__


def test_circumstances_name_processor_kernels_and_peers():
    found = machine.circumstances()
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["kernels"]
    assert found["versions"]["torch"] == torch.__version__
    assert set(machine.PEERS) <= set(found["versions"])


def test_what_other_programs_use_is_seen():
    own = machine.Bystanders()
    if own.cores() is None:
        pytest.skip("this system does not say how busy it is")
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    watched = machine.Bystanders()
    time.sleep(1.0)
    seen = watched.cores()
    process.kill()
    process.wait()
    assert seen > 0.4


def test_the_measured_peaks_are_plausible():
    found = limits.measure_limits(quick=True)
    assert set(found.bandwidth) == set(limits.WORKING_SETS[:2])
    assert all(1e8 < rate < 1e13 for rate in found.bandwidth.values())
    assert all(1e8 < rate < 1e15 for rate in found.operations.values())


def test_the_peak_of_a_call_counts_what_it_frees():
    def takes_64_mebibytes():
        torch.zeros(2**24).add_(1)

    found = peak_bytes(takes_64_mebibytes)
    if found is None:
        pytest.skip("this system does not say how much memory a process had at its peak")
    assert 2**25 < found < 2**28
    assert peak_bytes(lambda: None) < 2**23


def test_own_work_is_not_that_of_others(monkeypatch):
    seconds = iter([10.0, 14.0])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(seconds))
    times = iter([(1.0, 0.0, 0.0, 0.0, 0.0), (2.0, 0.5, 0.5, 0.0, 0.0)])
    monkeypatch.setattr(machine.os, "times", lambda: next(times))
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(clock))
    assert machine.Bystanders().cores() == 1.0


def test_sources_without_git_have_what_they_add_up_to(clone, monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    first = machine.commit()
    assert first.startswith("sources-")
    assert machine.commit() == first
    (clone / "src" / "code.py").write_text("another\n")
    assert machine.commit() != first
