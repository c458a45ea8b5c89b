"""The one place that hands a call to ``torch_npu``: for tensors on an Ascend device, where it can be imported."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

DEVICE = "npu"
"""The type of Ascend's devices in PyTorch."""


def device_operator(name: str, x: Tensor) -> Callable[..., Any] | None:
    """``torch_npu``'s operator of a name when ``x`` is on an Ascend device; None elsewhere, and where there is none.

    Example:
        >>> import torch
        >>> device_operator("npu_moe_gating_top_k", torch.zeros(1)) is None
        True
    """
    if x.device.type != DEVICE:
        return None
    try:
        torch_npu = importlib.import_module("torch_npu")
    except ImportError:
        return None
    operator: Callable[..., Any] | None = getattr(torch_npu, name, None)
    return operator


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None: an older release does not know the newer ones even by name.

    Example:
        >>> given(bias=None, k_group=1)
        {'k_group': 1}
    """
    return {name: value for name, value in arguments.items() if value is not None}
