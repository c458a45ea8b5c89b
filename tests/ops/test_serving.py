"""What is said to serve each operator, with and without Triton, and which serves."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from moegate.ops import serving
from moegate.ops.library import IMPLEMENTED
from moegate.ops.server import SERVER, Server
from moegate.ops.serving import operators, triton_name

WITHOUT_TRITON = """
import importlib.util, json, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else found(name, *rest)
sys.modules["triton"] = None  # so that an import fails
import torch, moegate
layer = moegate.MoE(8, 16, 4, moegate.recipes.mixtral())
out, routing = layer(torch.randn(3, 8, requires_grad=True))
out.sum().backward()
print(json.dumps({
    "shape": list(out.shape),
    "served": [[operator.gpu_implementation, operator.gpu_reason] for operator in moegate.ops.operators()],
    "registered": torch._C._dispatch_has_kernel_for_dispatch_key("moegate::permute", "CUDA"),
}))
"""


def without_triton(**environment: str) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MOEGATE_", "TRITON_"))}
    command = [sys.executable, "-c", WITHOUT_TRITON]
    done = subprocess.run(command, capture_output=True, text=True, env=env | environment, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_without_triton_everything_works_on_references() -> None:
    told = without_triton()
    assert told["shape"] == [3, 8]
    assert all(served == ["reference (PyTorch)", "Triton is not installed"] for served in told["served"])
    assert not told["registered"]


def test_strictly_a_gpu_without_triton_is_an_error() -> None:
    # There is no such device here, but whether something stands before the reference can be asked.
    assert without_triton(MOEGATE_STRICT="1")["registered"]


def test_every_triton_kernel_is_of_an_operator() -> None:
    for name in IMPLEMENTED:
        assert hasattr(torch.ops.moegate, name)


@pytest.mark.skipif(SERVER is Server.REFERENCES, reason="MOEGATE_KERNEL=0: nothing is registered for GPUs")
def test_triton_serves_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(serving, "SERVER", Server.KERNELS)
    served = {operator.name: operator for operator in operators()}
    assert served["permute"].gpu_implementation == f"kernel ({triton_name()})"
    assert served["permute"].gpu_reason == "float64 goes to the reference"


def test_switched_off_is_switched_off_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SERVER", Server.REFERENCES)
    assert {operator.gpu_implementation for operator in operators()} == {"reference (PyTorch)"}


def test_an_operator_without_a_triton_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SERVER", Server.KERNELS)
    monkeypatch.setattr(serving, "HAS_TRITON", True)
    monkeypatch.setattr(serving, "_has_kernel", lambda name, key: False)
    assert {operator.gpu_reason for operator in operators()} == {"there is no Triton kernel for it"}


def test_the_interpreter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SERVER", Server.INTERPRETER)
    monkeypatch.setattr(serving, "_has_kernel", lambda name, key: True)
    assert {operator.implementation for operator in operators()} == {f"kernel ({triton_name()}, interpreted)"}


def test_triton_may_come_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_TRITON_PACKAGES", ("no-such-distribution", "torch"))
    assert triton_name() == f"Triton {torch.__version__}"
    monkeypatch.setattr(serving, "_TRITON_PACKAGES", ())
    assert triton_name() == "Triton"
