"""Whether the kernels are there, and what the switches do. Each switch is read once, at import."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from moegate.ops.library import KERNELS, available_isas, forced_isa
from moegate.ops.server import Server, chosen

NAMES = ("scalar", "avx2", "avx512", "avx512_bf16")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MOEGATE_")} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


SAY = "from moegate.ops.library import KERNELS; print(KERNELS.loaded, KERNELS.reason)"


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here, so no kernels")
def test_where_there_is_a_compiler_there_are_kernels() -> None:
    done = run(SAY, MOEGATE_STRICT="1")
    assert done.stdout.startswith("True C++ kernels, "), done.stderr


def test_kernels_can_be_left_out() -> None:
    assert run(SAY, MOEGATE_KERNEL="0").stdout.strip() == "False switched off by MOEGATE_KERNEL=0"
    route = "import torch, moegate; print(moegate.route(torch.eye(3), moegate.recipes.mixtral()).expert_index.tolist())"
    assert run(route, MOEGATE_KERNEL="0").stdout.strip() == "[[0, 1], [1, 0], [2, 0]]"


def test_strict_refuses_to_do_without() -> None:
    done = run(SAY, MOEGATE_KERNEL="0", MOEGATE_STRICT="1")
    assert done.returncode != 0
    assert "the CPU kernels are missing: switched off by MOEGATE_KERNEL=0." in done.stderr


def test_a_server_that_is_none() -> None:
    done = run(SAY, MOEGATE_KERNEL="cuda")
    assert done.returncode != 0
    assert "MOEGATE_KERNEL=cuda is unknown: use 1 for the kernels (the default), 0 for" in done.stderr


@pytest.mark.parametrize("value", ["", "1"])
def test_the_default_server_has_a_value(value: str) -> None:
    assert chosen({"MOEGATE_KERNEL": value}, has_triton=False) is Server.KERNELS


def test_triton_kernels_on_the_cpu_need_the_interpreter() -> None:
    pytest.importorskip("triton", reason="that Triton is missing is said before")
    done = run(SAY, MOEGATE_KERNEL="triton", TRITON_INTERPRET="0")
    assert done.returncode != 0
    assert "MOEGATE_KERNEL=triton runs kernels in Triton's interpreter: set TRITON_INTERPRET=1 too." in done.stderr


def test_triton_kernels_on_the_cpu_need_triton() -> None:
    with pytest.raises(ImportError, match="needs Triton, which is not installed here"):
        chosen({"MOEGATE_KERNEL": "triton", "TRITON_INTERPRET": "1"}, has_triton=False)


def test_the_interpreter_serves_the_cpu() -> None:
    pytest.importorskip("triton")
    code = (
        "import torch, moegate; torch.ops.moegate.ordered_topk; "
        + SAY
        + """
from moegate.ops import dispatch_plan
import sys
dispatch_plan(torch.tensor([[0, 1]]), num_experts=2)
print("moegate.ops.dispatch_plan.gpu_kernel" in sys.modules)"""
    )
    done = run(code, MOEGATE_KERNEL="triton", TRITON_INTERPRET="1", MOEGATE_STRICT="1")
    assert done.stdout.split("\n")[:2] == [
        "False left out, MOEGATE_KERNEL=triton has Triton kernels instead",
        "True",
    ], done


def test_strict_refuses_a_fall_back() -> None:
    code = "from moegate.ops.library import falls_back; falls_back('topk_gate', 'the reason')"
    assert run(code).returncode == 0
    done = run(code, MOEGATE_STRICT="1")
    assert "MOEGATE_STRICT=1, and no kernel takes this call of moegate::topk_gate: the reason." in done.stderr


def test_a_library_that_is_none() -> None:
    done = run(SAY, MOEGATE_LIBRARY=__file__)
    assert done.stdout.startswith("False the kernel library can't be loaded: ")


@pytest.mark.skipif(not KERNELS.loaded, reason="tests the kernels")
def test_an_instruction_set_can_be_forced() -> None:
    best = torch.ops.moegate.cpu_isa()
    assert available_isas() == NAMES[: NAMES.index(available_isas()[-1]) + 1]
    for name in available_isas():
        with forced_isa(name):
            assert torch.ops.moegate.cpu_isa() == name
        assert torch.ops.moegate.cpu_isa() == best
        assert run(SAY, MOEGATE_ISA=name).stdout.strip() == f"True C++ kernels, {name}"


@pytest.mark.skipif(not KERNELS.loaded, reason="tests the kernels")
def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(RuntimeError, match="No instruction set is called 'sse': choose scalar, avx2"):
        torch.ops.moegate.set_cpu_isa("sse")
    assert "No instruction set is called 'sse'" in run(SAY, MOEGATE_ISA="sse").stderr
