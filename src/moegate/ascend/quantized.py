"""Rows as int8, with one scale for all of them or one for each."""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 127.0


class QuantizedRows(NamedTuple):
    """Rows ``[R, D]`` int8 and the float32 scale ``[R]`` that gives each row its size back."""

    rows: Tensor
    scale: Tensor


def static_int8(rows_RD: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """``round(rows · scale + offset)`` in float16, as the device computes it: rounded half to even and clamped to int8.

    NaN becomes 0.

    Example:
        >>> static_int8(torch.tensor([[0.5, -0.25, 1e6]]), torch.tensor([10.0]), torch.tensor([0.5])).tolist()
        [[6, -2, 127]]
    """
    half = rows_RD.detach().to(torch.float16) * scale.to(torch.float16) + offset.to(torch.float16)
    return as_int8(half)


def dynamic_int8(rows_RD: Tensor, smooth: Tensor | None = None) -> QuantizedRows:
    """Each row by its own greatest magnitude: ``scale = max|rows · smooth| / 127``, ``round(rows · smooth / scale)``.

    Computed in float32 and rounded half to even; a row of zeros has the scale 0.

    Example:
        >>> quantized = dynamic_int8(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))
        >>> quantized.rows.tolist(), quantized.scale.tolist()
        ([[127, -64], [0, 0]], [0.007874015718698502, 0.0])
    """
    values_RD = rows_RD.detach().to(torch.float32)
    if smooth is not None:
        values_RD = values_RD * smooth
    scale_R = greatest_magnitude(values_RD) / LARGEST
    return QuantizedRows(as_int8(values_RD / scale_R[:, None]), scale_R)


def greatest_magnitude(values_RD: Tensor) -> Tensor:
    """``[R]``: the greatest magnitude of each row; 0 for rows of width 0."""
    if values_RD.shape[1] == 0:
        return values_RD.new_zeros(values_RD.shape[0])
    return values_RD.abs().amax(dim=1)


def as_int8(values: Tensor) -> Tensor:
    """Rounded half to even and clamped; NaN becomes 0, also that of 0 / 0 in a row of zeros."""
    return values.round().nan_to_num(nan=0.0).clamp(-128, 127).to(torch.int8)
