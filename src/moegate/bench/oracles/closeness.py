"""How far a result is from what it must be."""

import torch
from torch import Tensor

from moegate.bench.cases import Verdict

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""The largest error, relative to the largest value, that sums of a few hundred rounded terms may have."""


def float64(tensor: Tensor) -> Tensor:
    """The values of a tensor in float64, where they lie, apart from any graph.

    Example:
        >>> float64(torch.tensor([0.5], dtype=torch.bfloat16)).tolist()
        [0.5]
    """
    return tensor.detach().double()


def compare(what: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> Verdict:
    """The verdict on a tensor that was computed in a type: shapes equal, and the largest error within its tolerance.

    Example:
        >>> compare("an output", torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]), torch.float32)
        'an output is off by 1.0e-01, the largest value is 2.0e+00'
    """
    if found.shape != expected.shape:
        return f"{what} has shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if expected.numel() == 0:
        return None
    error, largest = (float64(found) - expected).abs().max().item(), expected.abs().max().item()
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
