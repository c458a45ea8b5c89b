"""How far a result is from what it must be."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moegate.bench.cases import Verdict

Array = NDArray[np.float64]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""The largest error, relative to the largest value, that sums of a few hundred rounded terms may have."""


def float64(tensor: Tensor) -> Array:
    """A tensor as a float64 array.

    Example:
        >>> float64(torch.tensor([0.5], dtype=torch.bfloat16)).tolist()
        [0.5]
    """
    return tensor.detach().double().numpy()


def compare(what: str, found: Tensor, expected: Array, dtype: torch.dtype) -> Verdict:
    """The verdict on a tensor that was computed in a type: shapes equal, and the largest error within its tolerance.

    Example:
        >>> compare("an output", torch.tensor([1.0, 2.1]), np.array([1.0, 2.0]), torch.float32)
        'an output is off by 1.0e-01, the largest value is 2.0e+00'
    """
    if tuple(found.shape) != expected.shape:
        return f"{what} has shape {tuple(found.shape)} instead of {expected.shape}"
    if expected.size == 0:
        return None
    error, largest = np.abs(float64(found) - expected).max(), np.abs(expected).max()
    # Written so that a NaN is off as well.
    if error <= TOLERANCE[dtype] * largest:
        return None
    return f"{what} is off by {error:.1e}, the largest value is {largest:.1e}"


def first(*found: Verdict) -> Verdict:
    """The first verdict that finds something wrong.

    Example:
        >>> first(None, "late", "later")
        'late'
    """
    return next((verdict for verdict in found if verdict is not None), None)
