"""What is measured: variants that compute the same thing, the check that they do, and the least work it takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Verdict = str | None
"""None for a right result; for a wrong one a phrase that says by how much."""


def as_it_is(result: Any) -> Any:
    """The result of a call, unchanged."""
    return result


@dataclass(frozen=True)
class Place:
    """Where a case lies, and so who takes part in it.

    Attributes:
        device: of its tensors.
        accelerated: whether the peers are those of an accelerator.
        cache_bytes: inputs of at most this size may lie in a cache when they are read again and again; then the case
            has copies of them elsewhere, for a time with a cold cache. 0: no copies.
    """

    device: str = "cpu"
    accelerated: bool = False
    cache_bytes: int = 0

    def copies(self, num_bytes: int, most: int = 64) -> int:
        """How many copies of inputs are larger than the cache together; 0 where that takes too many, or none.

        Example:
            >>> Place("cuda", cache_bytes=2**20).copies(2**18), Place("cuda", cache_bytes=2**20).copies(2**8)
            (4, 0)
        """
        needed = self.cache_bytes // max(1, num_bytes)
        return needed if needed <= most else 0


CPU = Place()


@dataclass(frozen=True)
class Target:
    """What moegate's time must not exceed.

    Attributes:
        us: microseconds.
        floors: multiples of the physical floor.
        best_peers: multiples of the time of the best peer.
        share: the part of it that is not its products, for a case with such parts.
        cold: whether the time that counts is the one with cold caches.
        published: the best time that others have published, with where.
    """

    us: float | None = None
    floors: float | None = None
    best_peers: float | None = None
    share: float | None = None
    cold: bool = False
    published: str = ""


@dataclass(frozen=True)
class Variant:
    """One way to compute a case.

    Attributes:
        name: as the tables show it.
        call: what is timed.
        read: turns what the call returns into what the check of the case compares; not timed.
        ours: whether it is moegate. The first of ours is what all ratios are to.
        others: the same call on copies of its inputs, for a time in which no input lies in a cache.
    """

    name: str
    call: Callable[[], Any]
    read: Callable[[Any], Any] = as_it_is
    ours: bool = False
    others: tuple[Callable[[], Any], ...] = ()


@dataclass(frozen=True)
class Work:
    """The least that any variant has to do: bytes in and out once, and the operations of its matrix products.

    Example:
        >>> Work(num_bytes=1024, operations=2 * 8**3, dtype="bfloat16").operations
        1024
    """

    num_bytes: int = 0
    operations: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class Case:
    """Variants that compute the same thing.

    Attributes:
        name: what is computed, in words.
        shape: sizes by their letters, such as ``{"T": 4096, "E": 256}``.
        timed: what exactly is between the start and the stop of the clock.
        variants: by the order of the table, at least one of them ours.
        check: the verdict on what a variant returned.
        work: for the physical floor; None where there is none worth naming.
        missing: variant -> why it is not here.
        facts: further values that are kept with the row, computed after the times; each takes no argument.
        parts: gives what the first of ours is made of, to be timed beside it and compared with nothing.
        target: what is to be reached.
    """

    name: str
    shape: dict[str, int]
    timed: str
    variants: tuple[Variant, ...]
    check: Callable[[Any], Verdict]
    work: Work | None = None
    missing: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Callable[[], Any]] = field(default_factory=dict)
    parts: Callable[[], dict[str, Callable[[], Any]]] = dict
    target: Target | None = None


@dataclass(frozen=True)
class Entry:
    """A case that is built when its turn comes, so that no more than one holds memory.

    Attributes:
        key: the name and the sizes, as ``--only`` matches them.
        build: builds the case.
        quick: whether it is one of the small cases that ``--quick`` measures, and nothing else does.
    """

    key: str
    build: Callable[[], Case]
    quick: bool = False


def sizes(shape: dict[str, int]) -> str:
    """The sizes as a table shows them.

    Example:
        >>> sizes({"T": 4096, "E": 256})
        'T=4096 E=256'
    """
    return " ".join(f"{letter}={size}" for letter, size in shape.items())
