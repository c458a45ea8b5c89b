"""The activations of the experts, by name."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

__all__ = ["ACTIVATIONS", "GATED", "PLAIN", "apply_activation", "function_of", "number_of"]


def _relu_squared(values: Tensor) -> Tensor:
    return functional.relu(values).square()


GATED: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": functional.silu, "geglu": functional.gelu}
"""``act(gate) · up``: the function of the gate."""
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu2": _relu_squared,
    "relu": functional.relu,
    "silu": functional.silu,
}
ACTIVATIONS: tuple[str, ...] = (*GATED, *PLAIN)
"""Every name; the operators know an activation by its place here."""
_FUNCTIONS = {"swiglu": "silu", "geglu": "gelu"}
_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}


def number_of(activation: str) -> int:
    """The number that the operators know an activation by.

    Raises:
        ValueError: when there is none of that name.

    Example:
        >>> number_of("geglu")
        1
    """
    if activation not in _NUMBERS:
        raise ValueError(f"activation={activation!r} is none: choose {', '.join(ACTIVATIONS)}.")
    return _NUMBERS[activation]


def function_of(activation: int) -> tuple[str, bool]:
    """The function that an activation takes of its gate, or of all, and whether it is gated.

    Example:
        >>> function_of(1), function_of(5)
        (('gelu', True), ('silu', False))
    """
    name = ACTIVATIONS[activation]
    return _FUNCTIONS.get(name, name), name in GATED


def apply_activation(pre: Tensor, activation: str) -> Tensor:
    """``act(gate) · up`` of ``pre [..., 2F]``, gate first, or ``act(pre)`` of ``pre [..., F]``.

    Example:
        >>> import torch
        >>> apply_activation(torch.tensor([[-1.0, 2.0]]), "relu2").tolist()
        [[0.0, 4.0]]
    """
    if activation in GATED:
        gate, up = pre.chunk(2, dim=-1)
        return GATED[activation](gate) * up
    return PLAIN[activation](pre)
