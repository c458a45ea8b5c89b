"""What the parts of a rule have in common: they are frozen values with a name, and they travel as JSON."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from math import isfinite
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar


@dataclass(frozen=True)
class Part:
    """A part of a ``RoutingRule``: a frozen, comparable value with a ``kind`` that names it in JSON.

    A new part is a frozen dataclass that derives from one of the part families (a score, a noise, a selection,
    …) and is listed once in that family's table. Its fields must be JSON values; sequences are tuples.
    """

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The part as JSON values: its ``kind`` and its fields."""
        return {
            "kind": self.kind,
            **{field.name: _plain(getattr(self, field.name)) for field in fields(self)},
        }

    def __repr__(self) -> str:
        """What differs from the defaults, and always the first field, which is the part's main number."""
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for position, field in enumerate(fields(self))
            if position == 0 or not _is_default(self, field)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


PartType = TypeVar("PartType", bound=Part)


def part_from_dict(data: Any, family: Mapping[str, type[PartType]], role: str) -> PartType:
    """The part that ``to_dict`` described, looked up by its ``kind`` in the table of its family.

    Raises:
        ValueError: when the kind or a field is unknown; the message names the nearest.
    """
    if not isinstance(data, Mapping) or "kind" not in data:
        raise ValueError(f"The {role} must be an object with a 'kind', one of {sorted(family)}; got {data!r}.")
    values = dict(data)
    kind = values.pop("kind")
    if not isinstance(kind, str) or kind not in family:
        raise ValueError(f"Unknown {role} {kind!r}.{did_you_mean(str(kind), family)}")
    known = {field.name for field in fields(family[kind])}
    for name in values:
        if name not in known:
            raise ValueError(f"The {role} {kind!r} has no field {name!r}.{did_you_mean(name, known)}")
    return family[kind](**{name: _frozen(value) for name, value in values.items()})


def family_of(*classes: type[PartType]) -> dict[str, type[PartType]]:
    """A table of parts by their kind."""
    return {part.kind: part for part in classes}


def check_bool(name: str, value: object) -> None:
    """Raises unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known name, or all of them.

    Example:
        >>> did_you_mean("mixtrall", ["mixtral", "switch"])
        " Did you mean 'mixtral'?"
    """
    options = sorted(known)
    nearest = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else f" Known: {', '.join(options)}."


def check_integer(name: str, value: object, least: int | None = None) -> None:
    """Raises unless ``value`` is an integer, of at least ``least`` if that is given."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_positive_integer(name: str, value: object) -> None:
    """Raises unless ``value`` is an integer of at least 1."""
    check_integer(name, value, least=1)


def check_number(name: str, value: object) -> None:
    """Raises unless ``value`` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not isfinite(float(value)):
        raise ValueError(f"{name} must be a finite number, got {value}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}; got {value!r}.{did_you_mean(str(value), choices)}"
        )


def check_positive(name: str, value: object) -> None:
    """Raises unless ``value`` is a finite number greater than 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be a finite number greater than 0, got {value}.")


def _is_default(part: Part, field: "Field[Any]") -> bool:
    return field.default is not MISSING and bool(getattr(part, field.name) == field.default)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    # NumPy's numbers are as good as Python's, but no JSON.
    return value.item() if hasattr(value, "item") else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
