"""A Triton kernel is launched on the device of its tensors, whichever is current."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moegate.ops import library
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
