"""The ablation: what it counts instructions with, what it refuses to time, and what its tables say."""

import json
import stat
import subprocess
import sys

import pytest
import torch
from rich.table import Table

from moegate.bench import instructions
from moegate.bench.ablation_driver import Call
from moegate.bench.markdown import as_markdown
from moegate.bench.measuring import verdicts
from moegate.bench.suites import ablation
from moegate.ops.library import KERNELS
from moegate.ops.topk_gate.ablation import OPTIMISATIONS

needs_kernels = pytest.mark.skipif(not KERNELS.loaded, reason=f"without the C++ kernels: {KERNELS.reason}")
CALLS = [Call(0, 64, 8), Call(0, 64, 8, switched_off="blocking")]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH with nothing on it but what a test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def add(name, body):
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\n{body}", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return add


PERF = """
import json, sys, pathlib
report = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
last = sys.argv[-1]
repeats = json.loads(last)[0]["repeats"] if last.startswith("[") else 0
report.write_text(f"# started\\n\\n{COUNT},,instructions:u,100,100.00,,\\n")
"""
CALLGRIND = """
import json, sys, pathlib
out = next(a for a in sys.argv if a.startswith("--callgrind-out-file=")).split("=")[1]
for number, call in enumerate(json.loads(sys.argv[-1]), 1):
    total = 1000 + (5 if call["switched_off"] == "none" else 7) * call["num_tokens"]
    pathlib.Path(f"{out}.{number}").write_text(f"events: Ir\\nsummary: {total}\\n\\ntotals: {total}\\n")
pathlib.Path(out).write_text("summary: 123456\\n")
"""


@needs_kernels
def test_perf_is_asked_first(tools):
    tools("perf", PERF.replace("{COUNT}", "{10**9 + repeats * 4096 * 250}"))
    tools("valgrind", "raise SystemExit('not to be asked')")
    found = instructions.count(CALLS)
    assert found.how == instructions.PERF
    assert list(found.per_token.values()) == [250.0, 250.0]


@needs_kernels
def test_valgrind_is_asked_where_perf_counts_nothing(tools):
    tools("perf", PERF.replace("{COUNT}", "<not supported>"))
    tools("valgrind", CALLGRIND)
    found = instructions.count(CALLS)
    assert "AVX2 kernels are counted" in found.how
    assert found.per_token == {CALLS[0]: 5.0, CALLS[1]: 7.0}


@needs_kernels
def test_neither(tools):
    found = instructions.count(CALLS)
    assert found.per_token == {}
    assert "there is no valgrind" in found.how


@needs_kernels
@pytest.mark.parametrize(
    ("valgrind", "said"),
    [
        ("raise SystemExit(3)", "valgrind ended with status 3"),
        ("pass", "callgrind saw 0 calls of the kernel, not 4"),
    ],
)
def test_a_valgrind_that_fails_is_no_number(tools, valgrind, said):
    tools("valgrind", valgrind)
    found = instructions.count(CALLS)
    assert found.per_token == {}
    assert found.how == f"not measured: {said}"


def test_the_kernel_that_callgrind_looks_for_is_exported(project_root):
    source = (project_root / "src/moegate/ops/topk_gate/cpu_kernel_ablation.cpp").read_text(encoding="utf-8")
    assert f'[[gnu::visibility("default"), gnu::noinline]] void {instructions._KERNEL}(' in source


@needs_kernels
def test_callgrind_is_told_two_different_patterns(tools):
    tools("valgrind", "import sys\nsys.exit(len({a.split('=')[1] for a in sys.argv if '=*' in a}))")
    assert instructions.by_callgrind(CALLS).how == "not measured: valgrind ended with status 2"


def test_the_driver_makes_the_calls():
    listed = json.dumps([{"num_tokens": 2, "num_experts": 9, "top_k": 3, "switched_off": "branch_free"}])
    command = [sys.executable, "-m", "moegate.bench.ablation_driver", listed]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("problem", [ablation.Problem(9, 64, 8), ablation.Problem(9, 100, 40)])
def test_every_variant_is_right(problem):
    case = ablation.ablation_case(problem, counts_instructions=False)
    assert verdicts(case) == {}
    assert len(case.variants) == len(OPTIMISATIONS) + 2


def test_a_variant_with_other_bits_is_not_timed(monkeypatch):
    right = ablation.ablated_topk_gate

    def wrong(*inputs, switched_off, **settings):
        found = right(*inputs, switched_off=switched_off, **settings)
        off = switched_off == "blocking"
        return found._replace(weights=found.weights.nextafter(torch.tensor(1.0))) if off else found

    monkeypatch.setattr(ablation, "ablated_topk_gate", wrong)
    case = ablation.ablation_case(ablation.Problem(9, 64, 8), counts_instructions=False)
    assert verdicts(case) == {"without blocking": "wrong: not the bits of topk_gate"}


def row_of(**facts):
    times = {ablation.ALL_ON: 10.0, "without blocking": 13.5, "without branch free": 9.0}
    return {
        "key": "sigmoid bias T=1024 E=64 K=8",
        "case": "sigmoid bias",
        "shape": {"T": 1024, "E": 64, "K": 8},
        "threads": 1,
        "variants": {name: {"ours": True, "min_us": us, "median_us": us} for name, us in times.items()},
        "missing": {},
        "ratios": {name: {"min": us / 10.0, "median": us / 10.0} for name, us in times.items() if us != 10.0},
        "others_cores": 0.0,
        "facts": facts,
    }


def test_the_tables():
    counted = {"how": "by hand", "per_token": {ablation.ALL_ON: 1000.0, "without blocking": 1100.0}}
    written = as_markdown(ablation.tell([row_of(instructions=counted)]))
    assert "| without blocking | 1,100 (× 1.10) |" in written
    assert "| without branch free | not measured |" in written
    assert "| blocking | +35 % | +35 % |" in written
    assert "| branch free | +22 % | -10 % |" in written
    assert "| tree reduction | +28 % | – |" in written
    assert "Instructions: by hand." in written


def test_a_quick_run_says_that_it_counts_nothing():
    parts = ablation.tell([row_of()])
    assert any(isinstance(part, Table) for part in parts)
    assert "Instructions: not measured: --quick." in parts
