"""Short names for the layers of a trace, for axes and tables."""

import re
from collections.abc import Sequence

__all__ = ["layer_labels"]


def layer_labels(layers: Sequence[str]) -> list[str]:
    """The number of each layer in its name, where that tells them apart; else what the names do not share.

    Example:
        >>> layer_labels(["model.layers.3.mlp", "model.layers.4.mlp"])
        ['3', '4']
        >>> layer_labels(["encoder.block.1.mlp", "decoder.block.1.mlp"])
        ['encoder', 'decoder']
        >>> layer_labels(["mlp", "mlp"])
        ['0', '1']
    """
    numbers = [re.findall(r"\d+", name) for name in layers]
    if all(len(found) == 1 for found in numbers) and _distinct(labels := [found[0] for found in numbers]):
        return labels
    parts = [name.split(".") for name in layers]
    start, end = _shared(parts), _shared([part[::-1] for part in parts])
    labels = [".".join(part[start : len(part) - end]) for part in parts]
    if all(labels) and _distinct(labels):
        return labels
    return [str(number) for number in range(len(layers))]


def _distinct(labels: Sequence[str]) -> bool:
    return len(set(labels)) == len(labels)


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many parts all names begin with."""
    count = 0
    for place in zip(*parts, strict=False):
        if len(set(place)) > 1:
            break
        count += 1
    return count
