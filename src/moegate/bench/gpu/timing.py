"""Times on a card: calls captured into graphs, the graphs of all contenders replayed in turn, by the card's events."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from moegate.bench.gpu.card import Call, Card, Waits

IN_A_GRAPH = "graph"
EAGER = "eager"


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        graph_us: short calls are repeated in a graph until it takes about so long: then neither the start of a graph
            nor the resolution of an event matters.
        most_calls: at most so many calls in a graph.
        seconds: of a contender, in all its rounds.
        rounds: the fewest and the most.
        wake_seconds: work before a case, so that no clock is still low.
    """

    graph_us: float = 300.0
    most_calls: int = 64
    seconds: float = 0.15
    rounds: tuple[int, int] = (5, 60)
    wake_seconds: float = 0.05


@dataclass(frozen=True)
class Timing:
    """Microseconds per call over the rounds; low and high are the tenth and the ninetieth percentile."""

    min_us: float
    median_us: float
    low_us: float
    high_us: float
    rounds: int


@dataclass(frozen=True)
class Run:
    """What is timed: calls in a graph, or one after the other."""

    start: Call
    calls: int
    how: str
    result: Any = None
    note: str = ""


def prepared(card: Card, calls: Sequence[Call], effort: Effort, *, eager: str = "") -> Run:
    """Calls as one graph, repeated until it is long enough; one after the other where they wait for the card.

    Args:
        card: where.
        calls: the same work, each on inputs of its own.
        effort: how long a graph.
        eager: why not to try a graph; empty to try.
    """
    try:
        for call in calls:
            card.check_waits(call)
    except Waits as waits:
        eager = str(waits)
    if eager:
        return Run(partial(_one_after_the_other, calls), len(calls), EAGER, note=eager)
    captured = card.capture(calls)
    captured.replay()
    once = statistics.median(card.microseconds([captured.replay] * 3))
    repeats = int(min(effort.graph_us / max(once, 1e-3), effort.most_calls / len(calls)))
    if repeats > 1:
        del captured
        captured = card.capture(list(calls) * repeats)
        captured.replay()
        card.wait()
    return Run(captured.replay, len(calls) * max(1, repeats), IN_A_GRAPH, captured.result)


def _one_after_the_other(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def wake(card: Card, effort: Effort) -> None:
    """Keeps the card busy for a moment: an idle one has low clocks."""
    left = torch.full((2048 if card.real else 8,) * 2, 0.5, device=card.place.device, dtype=torch.bfloat16)
    until = time.perf_counter() + effort.wake_seconds
    while time.perf_counter() < until:
        for _ in range(10):
            torch.mm(left, left)
        card.wait()


def interleaved(card: Card, runs: Mapping[str, Run], effort: Effort) -> dict[str, Timing]:
    """Times all runs in turn, with the order reversed every other round."""
    rounds = {}
    for name, run in runs.items():
        once = card.microseconds([run.start])[0]
        fewest, most = effort.rounds
        rounds[name] = int(min(most, max(fewest, effort.seconds * 1e6 / max(once, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(max(rounds.values(), default=0)):
        order = [name for name in runs if number < rounds[name]]
        order = order if number % 2 == 0 else order[::-1]
        found = card.microseconds([runs[name].start for name in order])
        for name, us in zip(order, found, strict=True):
            times[name].append(us / runs[name].calls)
    return {name: summary(found) for name, found in times.items()}


def summary(times: Sequence[float]) -> Timing:
    """Minimum, median and percentiles.

    Example:
        >>> summary([3.0, 1.0, 2.0])
        Timing(min_us=1.0, median_us=2.0, low_us=1.0, high_us=3.0, rounds=3)
    """
    ordered = sorted(times)
    last = len(ordered) - 1
    return Timing(
        min_us=ordered[0],
        median_us=statistics.median(ordered),
        low_us=ordered[round(0.1 * last)],
        high_us=ordered[round(0.9 * last)],
        rounds=len(ordered),
    )
