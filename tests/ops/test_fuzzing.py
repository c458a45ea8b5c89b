"""Random wrong arguments for every operator: a result or a sentence, never a crash."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moegate.ops.library import KERNELS

ROUNDS = 120
NOT_FUZZED = {"cpu_isa", "set_cpu_isa"}
"""They take no tensor; ``test_library`` tests them."""


@pytest.mark.skipif(not KERNELS.loaded, reason=f"no kernels: {KERNELS.reason}")
@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_arguments_give_sentences(seed: int) -> None:
    """In a process of its own, so that a crash is seen and said."""
    script = Path(__file__).with_name("fuzz_operators.py")
    done = subprocess.run(
        [sys.executable, str(script), str(seed), str(ROUNDS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counted = json.loads(done.stdout)
    names = {name.removeprefix("moegate::") for name in torch._C._dispatch_get_all_op_names() if "moegate::" in name}
    assert set(counted) == names - NOT_FUZZED
    for name, outcomes in counted.items():
        assert set(outcomes) == {"result", "sentence"}, f"{name} only gave {outcomes}: the fuzzing has no teeth"
