"""`moegate doctor`: what it reads from the machine, and what it prints."""

import json
import platform
import re
from pathlib import Path

import numpy
import pytest
import torch
from typer.testing import CliRunner

import moegate
from moegate.cli import doctor as module
from moegate.cli.shell import app
from moegate.ops import operators

WIDE = {"TERMINAL_WIDTH": "200", "COLUMNS": "200", "NO_COLOR": "1"}

LINUX_X86 = """\
processor\t: 0
model name\t: Fast CPU 9000
flags\t\t: fpu avx2 fma avx512f amx_bf16

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
LINUX_ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp sve i8mm\n"


def json_facts() -> dict[str, object]:
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.output)
    assert isinstance(facts, dict)
    return facts


def test_json_holds_the_versions_of_what_runs() -> None:
    facts = json_facts()
    assert facts["python"] == platform.python_version()
    packages = facts["packages"]
    assert isinstance(packages, dict)
    assert packages["moegate"] == moegate.__version__
    assert packages["numpy"] == numpy.__version__
    assert packages["torch"] == torch.__version__


def test_json_has_one_entry_an_operator_with_a_reason() -> None:
    entries = json_facts()["operators"]
    assert isinstance(entries, list)
    assert [entry["name"] for entry in entries] == [operator.name for operator in operators()]
    fields = ("implementation", "reason", "gpu_implementation", "gpu_reason")
    assert all(entry[field] for entry in entries for field in fields)


def test_threads_are_those_of_torch() -> None:
    assert json_facts()["threads"] == {
        "intra_op": torch.get_num_threads(),
        "inter_op": torch.get_num_interop_threads(),
    }


def test_tables_show_every_operator_and_where_the_threads_are() -> None:
    shown = CliRunner(env=WIDE).invoke(app, ["doctor"])
    assert shown.exit_code == 0, shown.output
    for operator in operators():
        row = next(line for line in shown.output.splitlines() if f" {operator.name} " in line)
        assert operator.implementation in row
    assert f"{torch.get_num_threads()} intra-op" in shown.output
    for title in ("Versions", "Machine", "Operators"):
        assert title in shown.output


def test_every_extra_for_users_is_listed() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]\n")[1].split("\ndev = ")[0]
    extras = re.findall(r"^(\w+) = \[(.*)\]$", section, flags=re.M)
    assert {name: extra for extra, items in extras for name in re.findall(r'"([\w-]+)>=', items)} == module.OPTIONAL


def test_a_missing_extra_is_shown_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPTIONAL", {"no-such-distribution": "hf"})
    shown = CliRunner(env=WIDE).invoke(app, ["doctor"])
    assert "missing: in the clone, pip install '.[hf]'" in shown.output


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [(LINUX_X86, ["avx2", "fma", "avx512f", "amx_bf16"]), (LINUX_ARM, ["asimd", "asimddp", "i8mm", "sve"])],
    ids=["x86", "arm"],
)
def test_cpu_flags_are_those_of_the_first_core(cpuinfo: str, flags: list[str]) -> None:
    assert module.cpu_facts(cpuinfo)["flags"] == flags


def test_cpu_model_is_read_or_asked_from_the_platform() -> None:
    assert module.cpu_facts(LINUX_X86)["model"] == "Fast CPU 9000"
    assert module.cpu_facts("")["model"] == (platform.processor() or platform.machine())


def test_a_gpu_is_shown_with_memory_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "Big GPU", 9, 0, 80 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    shown = CliRunner(env=WIDE).invoke(app, ["doctor"])
    assert "GPU cuda:0" in shown.output
    assert "Big GPU, 80.0 GiB, capability 9.0" in shown.output


def test_an_intel_gpu_has_no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Other GPU", 16 * 2**30

    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: Properties)
    shown = CliRunner(env=WIDE).invoke(app, ["doctor"])
    row = next(line for line in shown.output.splitlines() if "GPU xpu:0" in line)
    assert "Other GPU, 16.0 GiB" in row and "capability" not in row


def test_without_a_gpu_it_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    shown = CliRunner(env=WIDE).invoke(app, ["doctor"])
    gpu_row = next(line for line in shown.output.splitlines() if " GPU " in line)
    assert "none" in gpu_row


def test_usable_cores_without_an_affinity_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert module.usable_cores() == 1
