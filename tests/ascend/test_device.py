"""Where a call goes: to torch_npu for tensors on an Ascend device whose operator it has, to moegate otherwise."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moegate.ascend import (
    Compat,
    npu_moe_gating_top_k,
    npu_moe_gating_top_k_backward,
    npu_moe_gating_top_k_softmax,
    npu_moe_gating_top_k_softmax_v2,
)


class OnNpu(Tensor):
    """A tensor that says it is on an Ascend device."""

    device = SimpleNamespace(type="npu")  # type: ignore[assignment]


class Recorder(ModuleType):
    """Stands for torch_npu: notes what is called with what."""

    def __init__(self, *names: str) -> None:
        super().__init__("torch_npu")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        for name in names:
            setattr(self, name, lambda *args, _name=name, **kwargs: self._note(_name, args, kwargs))

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        self.calls.append((name, args, kwargs))
        return "from the device"


NAMES = (
    "npu_moe_gating_top_k",
    "npu_moe_gating_top_k_backward",
    "npu_moe_gating_top_k_softmax",
    "npu_moe_gating_top_k_softmax_v2",
)


@pytest.fixture
def torch_npu(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(*NAMES)
    monkeypatch.setitem(sys.modules, "torch_npu", recorder)
    return recorder


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8).as_subclass(OnNpu)


def test_the_gate_goes_to_the_device_with_its_norm_type(torch_npu: Recorder, x: Tensor) -> None:
    bias = torch.zeros(8)
    assert npu_moe_gating_top_k(x, 2, bias=bias, norm_type=1, strict=True) == "from the device"
    ((name, args, kwargs),) = torch_npu.calls
    assert name == "npu_moe_gating_top_k"
    assert len(args) == 1
    assert args[0] is x
    assert kwargs.pop("bias") is bias
    # An older release has neither input_ids nor strict, and another default for norm_type.
    assert kwargs == {
        "k": 2, "k_group": 1, "group_count": 1, "group_select_mode": 0, "renorm": 0, "norm_type": 1, "out_flag": False,
        "routed_scaling_factor": 1.0, "eps": 1e-20,
    }  # fmt: skip


def test_the_hash_mode_takes_its_tensors_along(torch_npu: Recorder, x: Tensor) -> None:
    npu_moe_gating_top_k(x, 2, input_ids=torch.zeros(2), tid2eid=torch.zeros(1, 2))
    assert {"input_ids", "tid2eid"} <= set(torch_npu.calls[0][2])


def test_the_others_go_to_the_device(torch_npu: Recorder, x: Tensor) -> None:
    npu_moe_gating_top_k_softmax(x, None, 2, strict=True)
    npu_moe_gating_top_k_softmax_v2(x, k=2, renorm=None)
    npu_moe_gating_top_k_backward(x, x, x, norm_type=1)
    assert [(name, len(args)) for name, args, _ in torch_npu.calls] == [
        ("npu_moe_gating_top_k_softmax", 3),
        ("npu_moe_gating_top_k_softmax_v2", 1),
        ("npu_moe_gating_top_k_backward", 3),
    ]
    assert torch_npu.calls[1][2] == {"k": 2, "finished": None, "renorm": 0, "output_softmax": False}
    assert torch_npu.calls[2][2] == {"renorm": 0, "norm_type": 1, "routed_scaling_factor": 1.0, "eps": 1e-20}


def test_another_device_keeps_its_call(torch_npu: Recorder) -> None:
    assert npu_moe_gating_top_k(torch.zeros(1, 4), 2)[1].tolist() == [[0, 1]]
    assert torch_npu.calls == []


def test_a_behaviour_that_the_device_has_not_is_computed_here(torch_npu: Recorder, x: Tensor) -> None:
    for function in (npu_moe_gating_top_k, npu_moe_gating_top_k_softmax_v2):
        assert function(x, k=2, compat=Compat(y_dtype="float32"))[0].shape == (2, 2)
    assert torch_npu.calls == []


@pytest.mark.parametrize("module", [None, Recorder()], ids=["missing", "older"])
def test_without_the_operator_the_call_is_computed_here(
    module: ModuleType | None, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules makes an import fail.
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    assert npu_moe_gating_top_k(x, 2)[1].shape == (2, 2)
