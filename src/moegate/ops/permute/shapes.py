"""What the operators between tokens and rows are given, checked without looking at values.

The C++ operators check the same; these checks serve the references and the fake kernels.
"""

import torch
from torch import Tensor

from moegate.ops.permute.reference import wide_type

ELEMENTS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""The types that the operators take."""


def check_places(slot_R: Tensor, inverse_TK: Tensor) -> None:
    """Raises RuntimeError unless these are the slot of each row and the row of each slot."""
    for name, values, ndim in (("slot", slot_R, 1), ("inverse", inverse_TK, 2)):
        if values.ndim != ndim:
            raise RuntimeError(f"{name} must have {ndim} dimensions, got {values.ndim}.")
        if values.dtype != torch.int64:
            raise RuntimeError(f"{name} must be int64, got {values.dtype}.")


def check_matrix(name: str, values: Tensor, places: Tensor) -> None:
    """Raises RuntimeError unless this is a matrix with a row for each entry of ``places``, which is named for it."""
    if values.ndim != 2:
        raise RuntimeError(f"{name} must have 2 dimensions, got {values.ndim}.")
    if values.dtype not in ELEMENTS:
        raise RuntimeError(f"{name} must be float32, float64, bfloat16 or float16, got {values.dtype}.")
    if values.shape[0] != places.shape[0]:
        raise RuntimeError(f"{name} {tuple(values.shape)} must have {places.shape[0]} rows.")


def check_alike(left: Tensor, right: Tensor) -> None:
    """Raises RuntimeError unless both have rows of one kind."""
    if (left.ndim, right.ndim) != (2, 2) or left.dtype != right.dtype or left.shape[1] != right.shape[1]:
        raise RuntimeError(
            f"{left.dtype} {tuple(left.shape)} and {right.dtype} {tuple(right.shape)} must be matrices of the "
            "same type and the same width."
        )


def check_weights(weights_TK: Tensor | None, inverse_TK: Tensor, element: torch.dtype) -> None:
    """Raises RuntimeError unless these are the weights of the slots, in the type that sums are made in."""
    if weights_TK is None:
        return
    if weights_TK.dtype != wide_type(element):
        raise RuntimeError(f"weights must be {wide_type(element)}, got {weights_TK.dtype}.")
    if weights_TK.shape != inverse_TK.shape:
        raise RuntimeError(f"weights {tuple(weights_TK.shape)} must be {tuple(inverse_TK.shape)}, as inverse is.")
