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
class Variant:
    """One way to compute a case.

    Attributes:
        name: as the tables show it.
        call: what is timed.
        read: turns what the call returns into what the check of the case compares; not timed.
        ours: whether it is moegate. The first of ours is what all ratios are to.
    """

    name: str
    call: Callable[[], Any]
    read: Callable[[Any], Any] = as_it_is
    ours: bool = False


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
    """

    name: str
    shape: dict[str, int]
    timed: str
    variants: tuple[Variant, ...]
    check: Callable[[Any], Verdict]
    work: Work | None = None
    missing: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Callable[[], Any]] = field(default_factory=dict)


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
