"""What a logger is, and how a record becomes named numbers for loggers that only know those."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol


class Logger(Protocol):
    """Receives the numbers of a run as they come."""

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Take the record of one log step."""
        ...

    def finish(self, evaluation: Mapping[str, Any]) -> None:
        """Take the evaluation and close."""
        ...

    def close(self) -> None:
        """Close without an evaluation, when the run stops early."""
        ...


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by name; a list of numbers gets one name a layer.

    Tables (such as the load of each expert) are left out: they belong to the report.

    Example:
        >>> scalars({"step": 5, "loss": 0.5, "max_violation": [0.1, 0.2], "load": [[1, 2]]})
        {'loss': 0.5, 'max_violation/layer_0': 0.1, 'max_violation/layer_1': 0.2}
    """
    return dict(_flatten(record))


def _flatten(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if name == "step":
            continue
        if _is_number(value):
            yield name, value
        elif isinstance(value, list) and all(_is_number(item) for item in value):
            yield from ((f"{name}/layer_{layer}", item) for layer, item in enumerate(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
