"""The card and its clock: graphs, events, and what the card is. Nothing else in the benchmarks speaks to CUDA."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from moegate.bench.cases import Place

Call = Callable[[], Any]
_CACHES = 4  # copies of inputs are so many times larger than the L2 cache together


class Captured:
    """A graph that can be replayed, and what the last of its calls returned, which each replay writes anew."""

    def __init__(self, replay: Callable[[], None], result: Any) -> None:
        self.replay, self.result = replay, result


class Waits(Exception):
    """A call that waits for the card can't be part of a graph; the message says where it waits."""


class Card(Protocol):
    """What the benchmarks need of a device. The stand-in for rehearsals is ``rehearsal.Rehearsal``."""

    place: Place
    real: bool

    def session(self) -> AbstractContextManager[None]:
        """Everything that is timed happens inside, on one stream."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name, driver, sizes and clocks, for the results."""
        ...

    def wait(self) -> None:
        """Return when all work is done; raises what went wrong in it."""
        ...

    def check_waits(self, call: Call) -> None:
        """Run a call once; raises ``Waits`` when it waits for the card."""
        ...

    def capture(self, calls: Sequence[Call]) -> Captured:
        """A graph of calls, one after the other."""
        ...

    def microseconds(self, runs: Sequence[Call]) -> list[float]:
        """What each of the runs takes on the card, started one after the other."""
        ...

    def peak_bytes(self, call: Call) -> int:
        """The most memory that a call holds beyond what was held before it."""
        ...

    def release(self) -> None:
        """Give memory back that nothing holds any more."""
        ...


class CudaCard:
    """One NVIDIA card, or an AMD one under PyTorch's name ``cuda``.

    A graph is captured on the stream that everything runs on: a backward runs where its forward ran, so no work
    escapes to another stream, where a capture would fail.
    """

    real = True

    def __init__(self, index: int = 0) -> None:
        self._device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(self._device)
        cache = int(getattr(properties, "L2_cache_size", 0))
        self.place = Place(str(self._device), accelerated=True, cache_bytes=_CACHES * cache)
        self._stream = torch.cuda.Stream(self._device)

    @contextmanager
    def session(self) -> Iterator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield
            torch.cuda.synchronize()

    def describe(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self._device)
        return {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(int(getattr(properties, "L2_cache_size", 0)) / 2**20, 1),
            "runtime": torch.version.cuda or torch.version.hip,
        }

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def check_waits(self, call: Call) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            raise Waits(first_line(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def capture(self, calls: Sequence[Call]) -> Captured:
        graph, result = torch.cuda.CUDAGraph(), None
        with torch.cuda.graph(graph, stream=self._stream):
            for call in calls:
                result = call()
        return Captured(graph.replay, result)

    def microseconds(self, runs: Sequence[Call]) -> list[float]:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in runs]
        for run, (start, stop) in zip(runs, events, strict=True):
            start.record()
            run()
            stop.record()
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(stop) * 1000 for start, stop in events]

    def peak_bytes(self, call: Call) -> int:
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        call()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def release(self) -> None:
        torch.cuda.empty_cache()


def why_no_card() -> str | None:
    """Why nothing can be measured here, in a sentence; None where there is a card."""
    if torch.cuda.is_available():
        return None
    built = torch.version.cuda or torch.version.hip
    if built is None:
        return f"This PyTorch ({torch.__version__}) was built without CUDA: install one for your card."
    return f"PyTorch {torch.__version__} finds no CUDA device: is there a card, and its driver (nvidia-smi)?"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters.

    Example:
        >>> first_line(ValueError("no\\nand more"))
        'no'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
