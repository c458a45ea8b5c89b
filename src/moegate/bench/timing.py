"""Timing of variants against each other: interleaved rounds, so that a busy moment hits all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: at most so many for each variant.
        round_seconds: a round repeats a short call until about this much has passed.
        variant_seconds: a slow variant gets fewer rounds, so that all of them take about this long; at least three.
    """

    rounds: int = 21
    round_seconds: float = 0.01
    variant_seconds: float = 0.6


@dataclass(frozen=True)
class Timing:
    """Microseconds per call over the rounds."""

    min_us: float
    median_us: float
    rounds: int


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call, over ``repeats`` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def takes_part(number: int, own_rounds: int, all_rounds: int) -> bool:
    """Whether a variant of fewer rounds is timed in this one: its rounds are spread evenly over all of them.

    Example:
        >>> [takes_part(number, 2, 6) for number in range(6)]
        [False, False, True, False, False, True]
    """
    return (number + 1) * own_rounds // all_rounds > number * own_rounds // all_rounds


def interleaved(calls: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, Timing]:
    """Times all calls in turn, with the order reversed every other round, and no garbage collection between.

    Example:
        >>> found = interleaved({"a": lambda: None, "b": lambda: None}, Effort(rounds=3, round_seconds=1e-5))
        >>> found["a"].rounds, found["a"].min_us <= found["a"].median_us
        (3, True)
    """
    repeats, rounds = {}, {}
    for name, call in calls.items():
        call()  # what only the first call pays for
        once = max(seconds_of(call, 2), 1e-9)
        repeats[name] = max(1, int(effort.round_seconds / once))
        affordable = int(effort.variant_seconds / (once * repeats[name]))
        rounds[name] = min(effort.rounds, max(LEAST_ROUNDS, affordable))
    all_rounds = max(rounds.values(), default=0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        for number in range(all_rounds):
            order = list(calls) if number % 2 == 0 else list(calls)[::-1]
            for name in order:
                if takes_part(number, rounds[name], all_rounds):
                    times[name].append(seconds_of(calls[name], repeats[name]) * 1e6)
    finally:
        if collects:
            gc.enable()
    return {name: Timing(min(found), statistics.median(found), len(found)) for name, found in times.items()}
