"""Short names of layers, for tables."""

from collections.abc import Sequence

__all__ = ["short_names"]


def short_names(layers: Sequence[str]) -> list[str]:
    """The part in which dotted names differ, where that is one part; otherwise the names.

    Example:
        >>> short_names(["model.layers.3.mlp", "model.layers.4.mlp"])
        ['3', '4']
        >>> short_names(["encoder.0", "decoder.0.mlp"])
        ['encoder.0', 'decoder.0.mlp']
    """
    parts = [name.removeprefix("layer ").split(".") for name in layers]
    if len({len(one) for one in parts}) != 1:
        return list(layers)
    differing = [position for position, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    if len(differing) > 1 or (not differing and len(parts[0]) > 1):
        return list(layers)
    return [one[differing[0] if differing else 0] for one in parts]
