"""Reads JSON files and their fields, and says in a sentence which file is wrong and how."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_TYPE_NAMES = {str: "text", bool: "true or false", dict: "an object", list: "a list", int: "a whole number"}


class Record:
    """One JSON object with the place it came from; every getter checks what it returns."""

    def __init__(self, fields: dict[str, Any], place: str) -> None:
        self.fields = fields
        self.place = place

    def wrong(self, name: str, expected: str) -> ValueError:
        """Builds the error for a field that is missing or is not what it should be."""
        if name not in self.fields:
            return ValueError(f"{self.place} has no {name!r}; expected {expected}.")
        return ValueError(f"{self.place}: {name!r} is {_shown(self.fields[name])}; expected {expected}.")

    def _typed(self, name: str, kind: type, default: Any) -> Any:
        value = self.fields.get(name)
        if value is None and default is not ...:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(name, _TYPE_NAMES[kind])
        return value

    def text(self, name: str, default: Any = ...) -> str:
        """A string field."""
        return str(self._typed(name, str, default))

    def flag(self, name: str, default: Any = ...) -> bool:
        """A true/false field."""
        return bool(self._typed(name, bool, default))

    def objects(self, name: str) -> dict[str, Any]:
        """A nested object; empty where the field is absent."""
        return dict(self._typed(name, dict, {}))

    def items(self, name: str) -> list[Any]:
        """A list field; empty where the field is absent."""
        return list(self._typed(name, list, []))

    def whole(self, name: str, default: Any = ...) -> int:
        """A whole number that is not negative."""
        value = int(self._typed(name, int, default))
        if value < 0:
            raise self.wrong(name, "a whole number of at least 0")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """A string field with a fixed set of values."""
        value = self.fields.get(name)
        if value not in choices:
            raise self.wrong(name, " or ".join(map(repr, choices)))
        return str(value)

    def number(self, name: str) -> float | None:
        """A finite number, or None where the field is absent or not finite (a diverged run)."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        return float(value) if math.isfinite(value) else None

    def required_number(self, name: str) -> float | None:
        """A number that has to be there; None where it is not finite (a diverged run)."""
        if self.fields.get(name) is None:
            raise self.wrong(name, "a number")
        return self.number(name)

    def grid(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """A nested list of numbers of the given shape, or None where it is absent or empty."""
        value = self.fields.get(name)
        if value is None or value == [] or 0 in shape:
            return None
        expected = f"numbers in the shape {list(shape)}"
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise self.wrong(name, expected) from None
        if array.shape != shape:
            raise ValueError(f"{self.place}: {name!r} has the shape {list(array.shape)}; expected {expected}.")
        return array

    def counts(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """Like `grid`, for counts: no entry may be negative or not finite."""
        array = self.grid(name, shape)
        if array is not None and not (np.isfinite(array).all() and (array >= 0).all()):
            raise ValueError(f"{self.place}: {name!r} holds a negative or non-finite count.")
        return array


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def read_object(path: Path) -> Record:
    """Reads a file that holds one JSON object.

    Raises:
        ValueError: the file is missing, not UTF-8, cut, or not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): the file is damaged.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    return Record(_parse(text, str(path)), str(path))


def read_lines(path: Path, *, may_be_cut: bool) -> Iterator[Record]:
    """Reads a file of one JSON object a line; a cut last line is left out where `may_be_cut`.

    Raises:
        ValueError: the file is missing, or a line is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if may_be_cut and not line.endswith(b"\n") and not _is_object(line):
                    return
                if line.strip():
                    place = f"{path}, line {number}"
                    yield Record(_parse(_decoded(line, place), place), place)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{place} is not UTF-8 text: the file is damaged.") from None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(error)
        hint = "it is empty" if not text.strip() else f"it is cut or damaged ({reason})"
        raise ValueError(f"{place} is not JSON: {hint}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{place} holds {_shown(value)}; expected a JSON object.")
    return value
