"""What this machine can do at best, measured at the start: bytes a second, and operations of a matrix product."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from moegate.bench.cases import Work
from moegate.bench.timing import seconds_of

WORKING_SETS = tuple(2**exponent for exponent in (20, 23, 26, 29))  # 1 MiB, in caches, to 512 MiB, in main memory
MATRIX_SIZES = (1024, 2048)
_TRIALS = 5


class Floor(NamedTuple):
    """Microseconds below which some work can't be done, what says so, and at which rate: a second."""

    us: float
    bound: str
    rate: float


@dataclass(frozen=True)
class Limits:
    """The measured peaks for one number of threads.

    Attributes:
        bandwidth: bytes of a working set -> bytes a second, the better of reading alone and of copying.
        operations: dtype -> floating point operations a second of ``torch.mm``.
    """

    bandwidth: dict[int, float]
    operations: dict[str, float]

    def floor(self, work: Work) -> Floor:
        """The floor of some work on this machine: that of its bytes or that of its operations, whichever is later.

        Bytes count at the bandwidth of the smallest working set that holds them: what fits a cache may lie in it.

        Example:
            >>> Limits({2**20: 1e9}, {"float32": 1e9}).floor(Work(num_bytes=1000, operations=2000))
            Floor(us=2.0, bound='operations', rate=1000000000.0)
        """
        holding = [size for size in self.bandwidth if size >= work.num_bytes] or [max(self.bandwidth)]
        bandwidth, peak = self.bandwidth[min(holding)], self.operations[work.dtype]
        of_bytes = Floor(work.num_bytes / bandwidth * 1e6, "bytes", bandwidth)
        of_operations = Floor(work.operations / peak * 1e6, "operations", peak)
        return max(of_bytes, of_operations, key=lambda floor: floor.us)

    def at_least(self, other: "Limits") -> "Limits":
        """The better rate of the two for each size and type: more threads can do what fewer can.

        Example:
            >>> Limits({8: 2.0}, {"float32": 1.0}).at_least(Limits({8: 1.0}, {"float32": 3.0}))
            Limits(bandwidth={8: 2.0}, operations={'float32': 3.0})
        """
        return Limits(
            {size: max(rate, other.bandwidth[size]) for size, rate in self.bandwidth.items()},
            {dtype: max(rate, other.operations[dtype]) for dtype, rate in self.operations.items()},
        )


def measure_limits(*, quick: bool = False) -> Limits:
    """Measures the peaks with as many threads as PyTorch now uses; about two seconds, a tenth of that when quick."""
    sets = WORKING_SETS[:2] if quick else WORKING_SETS
    matrices = MATRIX_SIZES[:1] if quick else MATRIX_SIZES
    trials = 2 if quick else _TRIALS
    dtypes = (torch.float32, torch.bfloat16)
    return Limits(
        bandwidth={size: _bandwidth(size, trials) for size in sets},
        operations={str(dtype).removeprefix("torch."): _operations(dtype, matrices, trials) for dtype in dtypes},
    )


def _bandwidth(working_set: int, trials: int) -> float:
    source = torch.ones(working_set // 8)  # half of the set in float32, so that a copy works on all of it
    target = torch.zeros_like(source)
    whole = torch.ones(working_set // 4)
    repeats = max(1, 2**25 // working_set)
    copying = min(seconds_of(lambda: target.copy_(source), repeats) for _ in range(trials))
    reading = min(seconds_of(whole.sum, repeats) for _ in range(trials))
    return working_set / min(copying, reading)


def _operations(dtype: torch.dtype, matrices: tuple[int, ...], trials: int) -> float:
    best = 0.0
    for size in matrices:
        left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        out = torch.mm(left, right)
        product = partial(torch.mm, left, right, out=out)
        seconds = min(seconds_of(product, 1) for _ in range(trials))
        best = max(best, 2 * size**3 / seconds)
    return best
