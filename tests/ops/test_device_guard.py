"""Operators take tensors on one device, and a Triton kernel is launched there, whichever device is current."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import moegate
from moegate.ops import library
from moegate.ops.combine import combine
from moegate.ops.library import _device_index


class _OnCard(torch.Tensor):
    """A CPU tensor that says it lies on the third card."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:2")


def test_the_first_tensor_says_where() -> None:
    assert _device_index((None, torch.zeros(1).as_subclass(_OnCard), 3)) == 2
    assert _device_index((None, torch.zeros(1), 3)) is None


def test_launches_switch_to_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: dict[str, Any] = {}
    entered: list[int | None] = []
    monkeypatch.setattr(
        library, "_LIBRARY", SimpleNamespace(impl=lambda name, launch, key: launches.update({key: launch}))
    )
    monkeypatch.setattr(library, "TRITON_KEYS", ("CUDA",))
    monkeypatch.setattr(library, "HAS_TRITON", True)
    monkeypatch.setattr(library, "IMPLEMENTED", {})
    monkeypatch.setattr(torch.accelerator, "device_index", lambda index: entered.append(index) or nullcontext())
    library.implement("torch_add", "operator:add")
    assert launches["CUDA"](torch.zeros(1).as_subclass(_OnCard), 1).tolist() == [1.0]
    assert entered == [2]


def test_launches_refuse_tensors_on_several_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: dict[str, Any] = {}
    monkeypatch.setattr(
        library, "_LIBRARY", SimpleNamespace(impl=lambda name, launch, key: launches.update({key: launch}))
    )
    monkeypatch.setattr(library, "TRITON_KEYS", ("CUDA",))
    monkeypatch.setattr(library, "HAS_TRITON", True)
    monkeypatch.setattr(library, "IMPLEMENTED", {})
    library.implement("torch_add", "operator:add")
    with pytest.raises(RuntimeError, match=r"moegate::torch_add takes tensors on one device, got them on cpu, cuda:2"):
        launches["CUDA"](torch.zeros(1).as_subclass(_OnCard), torch.zeros(1))


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("hooked", [True, False])
def test_experts_that_were_not_loaded_are_refused(with_gradient: bool, hooked: bool) -> None:
    layer = moegate.MoE(16, 8, 4, moegate.recipes.mixtral())
    layer.experts.to("meta")
    if hooked:  # another way through the layer
        layer.experts.register_forward_pre_hook(lambda *_: None)
    with torch.set_grad_enabled(with_gradient), pytest.raises(RuntimeError, match="on one device, got"):
        layer(torch.randn(3, 16))


def test_rows_and_places_on_two_devices_are_refused() -> None:
    slot_R, inverse_TK = torch.tensor([0, 1]), torch.tensor([[0, 1]])
    with pytest.raises(RuntimeError, match="moegate::combine takes tensors on one device, got them on cpu, meta: move"):
        combine(torch.ones(2, 3), slot_R.to("meta"), inverse_TK.to("meta"))
