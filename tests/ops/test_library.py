"""Whether the kernels are there, and what the switches do. Each switch is read once, at import."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from moegate.ops.library import KERNELS, available_isas, forced_isa

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
