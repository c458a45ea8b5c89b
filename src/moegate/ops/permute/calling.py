"""What ``permute`` and ``combine`` do before they call their operator."""

import torch
from torch import Tensor

from moegate.ops.permute.reference import wide_type
from moegate.ops.permute.shapes import ELEMENTS
from moegate.ops.transforms import is_transformed


def fitting_weights(weights_TK: Tensor | None, inverse_TK: Tensor, element: torch.dtype) -> Tensor | None:
    """The weights in the type that products with such elements are taken in."""
    if weights_TK is None:
        return None
    if weights_TK.shape != inverse_TK.shape:
        raise ValueError(
            f"weights {tuple(weights_TK.shape)} must be {tuple(inverse_TK.shape)}, one for each slot of inverse."
        )
    wide = wide_type(element)
    return weights_TK if weights_TK.dtype is wide else weights_TK.to(wide)


def needs_reference(values: Tensor) -> bool:
    """Whether the reference serves the call: for other types, and where derivatives are taken in another way.

    ``torch.func`` and forward-mode derivatives can't see through an operator with a formula of its own, but through the
    reference, which is made of PyTorch's operators.
    """
    return values.dtype not in ELEMENTS or is_transformed()


def needs_graph(values: Tensor, weights: Tensor | None) -> bool:
    """Whether the call must go through autograd, which costs several microseconds even where it records nothing."""
    if torch.compiler.is_compiling():
        return True
    wanted = values.requires_grad or (weights is not None and weights.requires_grad)
    return wanted and torch.is_grad_enabled()
