"""What the card can do at best, measured in the run: bytes a second, products a second, the smallest kernel."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from moegate.bench.gpu.card import Card
from moegate.bench.limits import Limits

_ROUNDS = 15
_NODES = 50


@dataclass(frozen=True)
class CardLimits:
    """The measured peaks of a card.

    Attributes:
        copy: bytes a second of a large copy, read and written counted; the bandwidth of all floors.
        read: bytes a second of a large sum.
        operations: dtype -> floating point operations a second of a large ``torch.mm`` of random numbers.
        smallest_us: a kernel that does next to nothing, between others in a graph.
    """

    copy: float
    read: float
    operations: dict[str, float]
    smallest_us: float

    def as_limits(self) -> Limits:
        """For floors; the bandwidth is that of the memory, whatever lies in a cache."""
        return Limits({2**62: self.copy}, self.operations)


def measure_limits(card: Card) -> CardLimits:
    """Measures the peaks; about a second."""
    device, size = card.place.device, 2**30 if card.real else 2**12
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * size / _seconds(card, partial(target.copy_, source))
    read = size / _seconds(card, source.sum)
    del source, target
    sizes = {"bfloat16": 8192 if card.real else 16, "float32": 4096 if card.real else 16}
    operations = {name: _products(card, getattr(torch, name), size) for name, size in sizes.items()}
    return CardLimits(copy, read, operations, _smallest(card))


def _products(card: Card, dtype: torch.dtype, size: int) -> float:
    # Random numbers: a card is faster on zeros than on any real data.
    left, right = (torch.randn(size, size, device=card.place.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / _seconds(card, partial(torch.mm, left, right, out=out))


def _seconds(card: Card, call: Callable[[], object]) -> float:
    card.microseconds([call] * 3)
    return statistics.median(card.microseconds([call] * _ROUNDS)) / 1e6


def _smallest(card: Card) -> float:
    one = torch.zeros(1, device=card.place.device)
    add = partial(one.add_, 1.0)
    add()
    graph = card.capture([add] * _NODES)
    card.microseconds([graph.replay] * 3)
    return statistics.median(card.microseconds([graph.replay] * _ROUNDS)) / _NODES
