"""Comparisons that the checks share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moegate.bench.cases import Verdict


def same(what: str, found: Tensor, expected: Tensor) -> Verdict:
    """None when two tensors are equal, NaN to NaN; else how many elements differ.

    Example:
        >>> same("x", torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]))
        >>> same("x", torch.tensor([1, 2]), torch.tensor([1, 3]))
        'x differs at 1 of 2 places'
    """
    found, expected = found.cpu(), expected.cpu()
    if found.shape != expected.shape:
        return f"{what} has shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    alike = found == expected
    if found.is_floating_point():
        alike = alike | (found.isnan() & expected.isnan())
    differing = int((~alike).sum())
    return f"{what} differs at {differing} of {alike.numel()} places" if differing else None


def within_ulps(what: str, found: Tensor, exact: Tensor, ulps: float) -> Verdict:
    """None when float32 values are as near to float64 ones as so many units in the last place; NaN to NaN.

    Example:
        >>> within_ulps("x", torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), 2)
        >>> within_ulps("x", torch.tensor([1.0]), torch.tensor([1.001], dtype=torch.float64), 2)
        'x is off by 8388.6 ulp'
    """
    found, exact = found.cpu(), exact.cpu()
    if not torch.equal(found.isnan(), exact.isnan()):
        return f"{what} is NaN at other places"
    rounded = exact.float().abs().nan_to_num(1.0)
    unit = (torch.nextafter(rounded, torch.full_like(rounded, float("inf"))) - rounded).double()
    error = ((found.double() - exact).abs() / unit).nan_to_num(0.0)
    worst = float(error.max()) if error.numel() else 0.0
    return None if worst <= ulps else f"{what} is off by {worst:.1f} ulp"


def near(what: str, found: Tensor, expected: Tensor, tolerance: float) -> Verdict:
    """None when the largest error is small against the largest value."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if found.shape != expected.shape:
        return f"{what} has shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if expected.numel() == 0:
        return None
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    # Written so that a NaN is off as well.
    return None if error <= tolerance * largest else f"{what} is off by {error:.1e}, the largest value is {largest:.1e}"


def tensors_in(result: Any) -> list[Tensor]:
    """The tensors of a nest of tuples and lists, in their order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Sequence) and not isinstance(result, str):
        return [tensor for part in result for tensor in tensors_in(part)]
    return []
