"""What all suites have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from moegate.bench.cases import Entry, Variant
from moegate.bench.peers.finding import PeerMissing
from moegate.bench.results import Row

if TYPE_CHECKING:
    from rich.table import Table

Part: TypeAlias = "Table | str"
"""A table, or a sentence below one."""
UNUSABLE = "it can't be set up here"
Tell = Callable[[Sequence[Row]], list[Part]]
Draw = Callable[[Sequence[Row], Path], list[Path]]


@dataclass(frozen=True)
class Suite:
    """A set of cases with a way to show and to draw what was measured.

    Attributes:
        name: as on the command line, and of its files.
        entries: lists the cases.
        tell: makes tables and sentences of rows.
        draw: draws rows to files ``BASE.png`` and ``BASE.svg``; returns the files.
    """

    name: str
    entries: Callable[[], list[Entry]]
    tell: Tell
    draw: Draw


class Variants:
    """Collects the variants of a case, and the reasons of those that can't take part.

    Example:
        >>> variants = Variants(Variant("ours", lambda: 1, ours=True))
        >>> def absent() -> Variant:
        ...     raise PeerMissing("not installed")
        >>> variants.add("theirs", absent)
        >>> [variant.name for variant in variants.found], variants.missing
        (['ours'], {'theirs': 'not installed'})
    """

    def __init__(self, *found: Variant) -> None:
        self.found = list(found)
        self.missing: dict[str, str] = {}

    def add(self, name: str, make: Callable[[], Variant]) -> None:
        """Adds a variant, or the reason why there is none; a peer that can't be set up must not cost the others."""
        try:
            self.found.append(make())
        except PeerMissing as reason:
            self.missing[name] = str(reason)
        except Exception as error:
            sentence = str(error).strip().splitlines() or [""]
            self.missing[name] = f"{UNUSABLE}: {type(error).__name__}: {sentence[0][:200]}"
