"""Wraps an operator so that calls with a tensor on an Ascend device go to ``torch_npu``'s operator of the same name."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import Tensor

from moegate.ascend.device import device_operator

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_npu(operator: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The operator, which hands a call to the device when any of its tensors lies there (``moegate.ascend.device``).

    ``strict`` is not handed on: the device has its own limits, and checks them itself. Every other argument is; one
    that only moegate knows is refused there.

    Example:
        >>> import torch
        >>> def npu_doubled(x: Tensor) -> Tensor:
        ...     return 2 * x
        >>> on_npu(npu_doubled)(torch.ones(2)).tolist()
        [2.0, 2.0]
    """

    @wraps(operator)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for value in (*args, *kwargs.values()):
            native = device_operator(operator.__name__, value) if isinstance(value, Tensor) else None
            if native is not None:
                handed_on = {name: argument for name, argument in kwargs.items() if name != "strict"}
                return native(*args, **handed_on)  # type: ignore[no-any-return]
        return operator(*args, **kwargs)

    return call
