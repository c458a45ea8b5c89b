"""Objects in the JSON of strangers: a key that is there twice would hide one of its values."""

from typing import Any

__all__ = ["without_twins"]


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values, as ``json.loads(..., object_pairs_hook=without_twins)`` calls it.

    Raises:
        ValueError: a key is there twice.

    Example:
        >>> without_twins([("a", 1), ("b", 2)])
        {'a': 1, 'b': 2}
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r:.80} is there twice")
    return result
