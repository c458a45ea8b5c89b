"""Timing of variants against each other: interleaved rounds, so that a busy moment hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ROUND_SECONDS = 0.02


@dataclass(frozen=True)
class Timing:
    """Microseconds per call over the rounds."""

    median_us: float
    min_us: float


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call, over `repeats` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time all variants `rounds` times, in turn, with the order reversed every other round."""
    repeats = {}
    for name, call in variants.items():
        call()  # what only the first call pays for
        repeats[name] = max(1, int(ROUND_SECONDS / seconds_of(call, 2)))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants) if number % 2 == 0 else list(reversed(variants))
        for name in order:
            times[name].append(seconds_of(variants[name], repeats[name]) * 1e6)
    return {name: Timing(statistics.median(values), min(values)) for name, values in times.items()}
