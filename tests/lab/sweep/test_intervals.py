"""Student's t against scipy and against printed tables."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from moegate.lab.sweep import estimate, student_coverage, student_quantile

PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize("degrees", PRINTED)
def test_quantiles_are_those_of_the_printed_table(degrees: int) -> None:
    assert student_quantile(0.95, degrees) == pytest.approx(PRINTED[degrees], abs=6e-4)


@pytest.mark.parametrize("degrees", [*range(1, 12), 50, 333])
@pytest.mark.parametrize("confidence", [0.01, 0.5, 0.9, 0.99, 0.9999])
def test_quantiles_agree_with_scipy(degrees: int, confidence: float) -> None:
    expected = stats.t.ppf(0.5 + confidence / 2, degrees)
    assert student_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-8)
    assert student_coverage(expected, degrees) == pytest.approx(confidence, rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_an_estimate_is_the_interval_of_scipy(count: int) -> None:
    values = [random.gauss(0.95, 0.01) for _ in range(count)]
    mean, ci = estimate(values)
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert ci is not None
    assert (mean - ci, mean + ci) == pytest.approx((low, high), rel=1e-9)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        mean, ci = estimate(generator.normal(3.0, 2.0, size=3).tolist())
        assert ci is not None
        covered += abs(mean - 3.0) <= ci
    assert 0.93 < covered / 2000 < 0.97


def test_equal_values_have_no_width_and_a_single_one_no_interval() -> None:
    assert estimate([0.5, 0.5, 0.5]) == (0.5, 0.0)
    assert estimate([0.5]) == (0.5, None)
    assert math.isfinite(estimate([1e300, 1e300]).mean)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        estimate([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        estimate([1.0], confidence=95)
    with pytest.raises(ValueError, match="degrees=0"):
        student_coverage(1.0, 0)
