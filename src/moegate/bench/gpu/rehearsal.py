"""A stand-in for a card: the same steps on CPU tensors, so that no line of the benchmarks first runs on a GPU.

Its times are those of Triton's interpreter on tiny inputs. They say nothing, and are printed nowhere.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from moegate.bench.cases import Place
from moegate.bench.gpu.card import Call, Captured


class Rehearsal:
    """A card that is none: a graph is the calls themselves, an event is the clock on the wall."""

    real = False
    place = Place("cpu", accelerated=True, cache_bytes=2**11)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Nothing to enter."""
        yield

    def describe(self) -> dict[str, Any]:
        """That it is no card."""
        return {"name": "rehearsal on the CPU", "capability": "", "multiprocessors": 0, "memory_gib": 0, "l2_mib": 0}

    def wait(self) -> None:
        """Everything is done already."""

    def check_waits(self, call: Call) -> None:
        """Runs the call; nothing waits."""
        call()

    def capture(self, calls: Sequence[Call]) -> Captured:
        """Runs the calls, as a capture runs their host code, and again at each replay."""
        kept: list[Any] = []

        def replay() -> None:
            kept[:] = [call() for call in calls][-1:]

        replay()
        return Captured(replay, kept[0])

    def microseconds(self, runs: Sequence[Call]) -> list[float]:
        """By the clock on the wall."""
        found = []
        for run in runs:
            start = time.perf_counter()
            run()
            found.append((time.perf_counter() - start) * 1e6)
        return found

    def peak_bytes(self, call: Call) -> int:
        """Runs the call; its memory is not counted."""
        call()
        return 0

    def release(self) -> None:
        """Nothing is held."""
