"""``Hints``: what a file of another system doesn't say about itself, and its user may."""

from dataclasses import dataclass

__all__ = ["Hints"]


@dataclass(frozen=True)
class Hints:
    """What the user says about a file; None where it is to be read from the file.

    Attributes:
        num_experts: ``E`` of every layer.
        num_layers: ``L``, where an array has lost its shape.
        top_k: ``K``, where an array has lost its shape.
        dtype: the integers of an array that has lost its type, such as ``"int32"``.
    """

    num_experts: int | None = None
    num_layers: int | None = None
    top_k: int | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_experts", "num_layers", "top_k"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} is {value!r}, but must be a whole number from 1.")
