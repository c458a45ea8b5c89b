"""Random wrong arguments for every operator: a result or a sentence, never a crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_support import only_on_triton

import moegate.ops.ordered_topk.algorithms
import moegate.ops.topk_gate.ablation  # noqa: F401 - both define operators that nothing else imports
from moegate.ops.library import KERNELS

ROUNDS = 120
NOT_FUZZED = {"cpu_isa", "set_cpu_isa"}
"""They take no tensor; ``test_library`` tests them."""
WITHOUT_REFERENCE = {"experts_backward_kernel", "topk_by_algorithm_scratch"}


def fuzzed(seed: int, environment: dict[str, str], rounds: int = ROUNDS) -> dict[str, dict[str, int]]:
    """What came of the calls of each operator, in a process of its own, so that a crash is seen and said."""
    script = Path(__file__).with_name("fuzz_operators.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(seed), str(rounds)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counted: dict[str, dict[str, int]] = json.loads(done.stdout)
    return counted


def operators() -> set[str]:
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("moegate::"))
    return {name.removeprefix("moegate::") for name in names} - NOT_FUZZED


def had_teeth(counted: dict[str, dict[str, int]]) -> None:
    for name, outcomes in counted.items():
        assert set(outcomes) == {"result", "sentence"}, f"{name} only gave {outcomes}"


@pytest.mark.skipif(not KERNELS.loaded, reason=f"no kernels: {KERNELS.reason}")
@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_arguments_of_kernels(seed: int) -> None:
    counted = fuzzed(seed, {})
    assert set(counted) == operators()
    had_teeth(counted)


def test_wrong_arguments_of_references() -> None:
    counted = fuzzed(2, {"MOEGATE_KERNEL": "0", "MOEGATE_STRICT": "0"})
    assert set(counted) == operators() - WITHOUT_REFERENCE
    had_teeth(counted)


@only_on_triton
@pytest.mark.timeout(300)
def test_wrong_arguments_of_triton_kernels() -> None:
    """Nothing that a kernel is given makes it touch what is not its own; see ``triton_sanitizer``."""
    counted = fuzzed(3, {}, rounds=20)
    assert set(counted) == operators() - WITHOUT_REFERENCE
    had_teeth(counted)
