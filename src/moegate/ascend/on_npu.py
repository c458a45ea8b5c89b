"""The one place where a call goes to the device: with tensors on an NPU, torch_npu's operator of the same name runs."""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_npu(operator: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The operator, which hands calls with a tensor on an ``npu`` device to ``torch_npu``, where that is installed.

    ``strict`` is not handed on: the device has its own limits, and checks them itself. Every other argument is; one
    that only moegate knows is refused there.

    Raises:
        RuntimeError: on the call, when the tensors are on an NPU and the installed torch_npu lacks the operator.

    Example:
        >>> import torch
        >>> def npu_doubled(x: Tensor) -> Tensor:
        ...     return 2 * x
        >>> on_npu(npu_doubled)(torch.ones(2)).tolist()
        [2.0, 2.0]
    """

    @wraps(operator)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not any(_lies_on_npu(value) for value in (*args, *kwargs.values())):
            return operator(*args, **kwargs)
        native = _native(operator.__name__)
        if native is None:
            return operator(*args, **kwargs)
        return native(*args, **{name: value for name, value in kwargs.items() if name != "strict"})  # type: ignore[no-any-return]

    return call


def _lies_on_npu(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "npu"


def _native(name: str) -> Callable[..., Any] | None:
    """torch_npu's operator; None where torch_npu is not installed."""
    try:
        torch_npu = import_module("torch_npu")
    except ImportError:
        return None
    operator = getattr(torch_npu, name, None)
    if operator is None:
        raise RuntimeError(
            f"The installed torch_npu has no {name}: use a version that has it, or move the tensors to the CPU."
        )
    return operator  # type: ignore[no-any-return]
