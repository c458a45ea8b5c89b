"""What the operators that move rows check: their contract always, the limits of the hardware in strict mode.

Both raise an ``AscendOperatorError``, which is a ValueError and a RuntimeError; what is no tensor, or one of another
kind, is a TypeError.
"""

import torch
from torch import Tensor

from moegate.ascend.limits import DEVICE_DTYPES, INVALID, TILING, AscendOperatorError, device_only

FLOATS = DEVICE_DTYPES
"""The element types of the device's rows; float64 is ours alone."""


def require(fits: bool, operator: str, limit: str, got: object, code: int = TILING) -> None:
    """Raises unless the hardware takes it.

    Raises:
        AscendOperatorError: naming the operator, its limit, what was passed, and the code that the device returns.

    Example:
        >>> require(False, "npu_moe_token_unpermute", "at most 512 experts per token", 600)
        Traceback (most recent call last):
        moegate.ascend.limits.AscendOperatorError: ACLNN_ERR_INNER_TILING_ERROR (561002): npu_moe_token_unpermute ...
    """
    device_only(fits, code, "{} takes {}, got {}.", operator, limit, got)


def require_types(operator: str, types: tuple[torch.dtype, ...], **tensors: Tensor | None) -> None:
    """Raises unless every tensor that is given has one of the element types that the device takes."""
    named = ", ".join(str(dtype).removeprefix("torch.") for dtype in types)
    for name, tensor in tensors.items():
        if tensor is not None:
            require(tensor.dtype in types, operator, f"{name} as {named}", tensor.dtype, INVALID)


def check_tensor(name: str, value: object, *shape: int | str) -> None:
    """Raises unless this is a tensor of the shape; a word in place of a size stands for any size.

    Example:
        >>> check_tensor("x", torch.zeros(2, 3), "tokens", 4)
        Traceback (most recent call last):
        moegate.ascend.limits.AscendOperatorError: ACLNN_ERR_PARAM_INVALID (161002): x must be [tokens, 4], got (2, 3).
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor [{_written(shape)}], got {type(value).__name__}.")
    fits = value.ndim == len(shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(value.shape, shape, strict=False)
    )
    if not fits:
        raise AscendOperatorError(INVALID, f"{name} must be [{_written(shape)}], got {tuple(value.shape)}.")


def check_index(name: str, value: object, *shape: int | str) -> None:
    """Raises unless this is an int32 or int64 tensor of the shape."""
    check_tensor(name, value, *shape)
    check_integers(name, value)


def check_integers(name: str, value: object) -> None:
    """Raises unless this is an int32 or int64 tensor, of any shape."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int32 or int64 tensor, got {type(value).__name__}.")
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32, as the device takes it, or int64; got {value.dtype}.")


def check_float(name: str, value: object) -> None:
    """Raises unless this is a floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {found}.")


def check_values(name: str, values: Tensor, least: int, most: int, meaning: str) -> None:
    """Raises when a value lies outside ``[least, most]``. Compiled and without values, nothing is looked at.

    Example:
        >>> check_values("row_idx", torch.tensor([0, 7]), 0, 5, "a place")
        Traceback (most recent call last):
        moegate.ascend.limits.AscendOperatorError: ... row_idx must hold a place, so values from 0 to 5; got values ...
    """
    if not readable(values) or values.numel() == 0:
        return
    least_value, most_value = (int(value) for value in values.aminmax())
    if least_value < least or most_value > most:
        raise AscendOperatorError(
            INVALID,
            f"{name} must hold {meaning}, so values from {least} to {most}; "
            f"got values from {least_value} to {most_value}.",
        )


def readable(values: Tensor) -> bool:
    """Whether the values can be looked at: not while compiling, nor on the meta device."""
    return not (torch.compiler.is_compiling() or values.is_meta)


def check_mode(name: str, value: object, choices: tuple[int, ...]) -> None:
    """Raises unless the value is one of the modes."""
    if isinstance(value, bool) or value not in choices:
        raise AscendOperatorError(INVALID, f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}.")


def _written(shape: tuple[int | str, ...]) -> str:
    return ", ".join(map(str, shape))
