"""Checks that the gating operators share, and how their attributes travel: integers as they are, numbers in float32."""

import ctypes
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from moegate.ascend.limits import INVALID, AscendOperatorError, refuse_unless
from moegate.parts import check_integer


def check_scores_input(x: object, dims: tuple[int, ...] = (2,)) -> None:
    """Raises unless ``x`` holds floating-point logits ``[..., E]`` of a rank in ``dims``."""
    if isinstance(x, Tensor) and x.ndim in dims and x.is_floating_point():
        return
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor of logits, got {type(x).__name__}.")
    if not x.is_floating_point():
        raise AscendOperatorError(INVALID, f"x must be floating point, got {x.dtype}.")
    wanted = " or ".join(f"{dim}-D" for dim in dims)
    raise AscendOperatorError(INVALID, f"x must be {wanted}, got the shape {tuple(x.shape)}.")


def check_per_expert(name: str, values: object, num_experts: int, x: Tensor) -> None:
    """Raises unless ``values`` is a floating-point tensor ``[E]`` on the device of ``x``."""
    if (
        isinstance(values, Tensor)
        and values.is_floating_point()
        and values.shape == (num_experts,)
        and values.device == x.device
    ):
        return
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor [{num_experts}] or None, got {type(values).__name__}.")
    refuse_unless(values.is_floating_point(), INVALID, "{} must be floating point, got {}.", name, values.dtype)
    refuse_unless(
        values.shape == (num_experts,),
        INVALID,
        "{} must be 1-D with one value per expert, so ({},); got {}.",
        name,
        num_experts,
        values.shape,
    )
    refuse_unless(values.device == x.device, INVALID, "{} is on {} and x on {}.", name, values.device, x.device)


def check_finished(finished: object, rows: tuple[int, ...], x: Tensor) -> None:
    """Raises unless ``finished`` is a bool tensor with one value per row of ``x``."""
    if not isinstance(finished, Tensor):
        raise TypeError(f"finished must be a bool tensor {rows} or None, got {type(finished).__name__}.")
    refuse_unless(finished.dtype == torch.bool, INVALID, "finished must be bool, got {}.", finished.dtype)
    refuse_unless(
        finished.shape == rows,
        INVALID,
        "finished must have one value per row of x, so {}; got {}.",
        rows,
        finished.shape,
    )
    refuse_unless(finished.device == x.device, INVALID, "finished is on {} and x on {}.", finished.device, x.device)


def check_integers(values: Sequence[object], names: Sequence[str]) -> None:
    """Raises a ``TypeError`` unless each value is an integer; a bool is none, as in torch_npu."""
    for value, name in zip(values, names, strict=False):
        if type(value) is not int:
            check_integer(name, value)


def check_ids(name: str, values: object, x: Tensor) -> None:
    """Raises unless these are int32 or int64 values on the device of ``x``."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor of int32 or int64, got {type(values).__name__}.")
    refuse_unless(
        values.dtype in (torch.int32, torch.int64), INVALID, "{} must be int32 or int64, got {}.", name, values.dtype
    )
    refuse_unless(values.device == x.device, INVALID, "{} is on {} and x on {}.", name, values.device, x.device)


def check_numbers(values: Sequence[object], names: Sequence[str]) -> None:
    """Raises a ``TypeError`` unless each value is a number; a bool is none."""
    for value, name in zip(values, names, strict=False):
        if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name} must be a number, got {value!r}.")


def float32_attribute(name: str, value: Any) -> float:
    """A double as the operators keep it: narrowed to float32.

    Example:
        >>> float32_attribute("routed_scaling_factor", 2.826)
        2.8259999752044678
    """
    check_numbers((value,), (name,))
    if torch.compiler.is_compiling():
        # A number that has changed between calls is a symbol to the compiler: this makes a graph for each value.
        value = torch.fx.experimental.symbolic_shapes.guard_scalar(value)
    return _narrowed(float(value))


def _narrow(value: float) -> float:
    return ctypes.c_float(value).value


# The compiler can't trace through ctypes, and needs not.
_narrowed: Callable[[float], float] = torch.compiler.assume_constant_result(_narrow)


def check_range(name: str, values: Tensor, end: int) -> None:
    """Raises unless all integers lie in ``0..end - 1``; not while compiling or on meta, where values are unknown."""
    if values.numel() == 0 or values.is_meta or torch.compiler.is_compiling():
        return
    least, most = (int(bound) for bound in values.aminmax())
    refuse_unless(
        least >= 0 and most < end,
        INVALID,
        "{} must lie in 0..{}, got values from {} to {}.",
        name,
        end - 1,
        least,
        most,
    )
