"""Means with confidence intervals, by Student's t distribution."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over seeds and the half width of its confidence interval; `ci` is None for a single seed."""

    mean: float
    ci: float | None


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean and the half width `t · s / sqrt(n)` of its confidence interval.

    s is the sample standard deviation, t the two-sided quantile of Student's t with n - 1 degrees of freedom. It
    covers the mean of independent, roughly normal values; a single value has no interval.

    Raises:
        ValueError: no values, or a confidence that isn't between 0 and 1.

    Example:
        >>> mean, ci = estimate([1.0, 2.0, 3.0])
        >>> mean, round(ci, 3)
        (2.0, 2.484)
        >>> estimate([1.0])
        Estimate(mean=1.0, ci=None)

    Source: Student, "The probable error of a mean", 1908.
    """
    if not values:
        raise ValueError("A mean needs at least one value.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95.")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, None)
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, student_quantile(confidence, len(values) - 1) * spread)


def student_quantile(confidence: float, degrees: int) -> float:
    """Return t with `P(|T| <= t) = confidence` for Student's t with `degrees` degrees of freedom.

    Example:
        >>> round(student_quantile(0.95, 2), 4)
        4.3027
    """
    low, high = 0.0, 1.0
    while student_coverage(high, degrees) < confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if student_coverage(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_coverage(t: float, degrees: int) -> float:
    """Return `P(|T| <= t)` for Student's t, by its finite series for whole degrees of freedom.

    Raises:
        ValueError: fewer than one degree of freedom.

    Example:
        >>> student_coverage(1.0, 1)
        0.5

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if degrees < 1:
        raise ValueError(f"degrees={degrees} must be at least 1.")
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
