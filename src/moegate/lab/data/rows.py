"""One line of the table that says what the data is."""

from typing import NamedTuple


class DataRow(NamedTuple):
    """A domain of the data: how much there is, where it is from, under which licence."""

    domain: str
    unit: str
    """What the three sizes count: "bytes" of text or "images"."""
    total: int
    train: int
    validation: int
    source: str
    licence: str
