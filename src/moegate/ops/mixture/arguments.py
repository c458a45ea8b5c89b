"""What the operators of a layer's second half are given, checked without looking at values."""

import torch
from torch import Tensor

from moegate.ops.experts.activations import ACTIVATIONS, GATED


def check_arguments(
    hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, up: Tensor, down_EDF: Tensor, activation: int
) -> None:
    """Raises RuntimeError unless shapes, types and devices fit: what kernels need to stay within their memory."""
    if not 0 <= activation < len(ACTIVATIONS):
        raise RuntimeError(f"activation must be 0 to {len(ACTIVATIONS) - 1}, got {activation}.")
    sides = 2 if ACTIVATIONS[activation] in GATED else 1
    tensors = (hidden_TD, index_TK, weights_TK, up, down_EDF)
    fits = [tensor.ndim for tensor in tensors] == [2, 2, 2, 3, 3]
    if fits:
        num_experts, hidden_size, width = down_EDF.shape
        fits = up.shape == (num_experts, sides * width, hidden_size) and hidden_TD.shape[1] == hidden_size
        fits = fits and index_TK.shape == weights_TK.shape and index_TK.shape[0] == hidden_TD.shape[0]
    if not fits:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise RuntimeError(f"hidden, index, weights, up and down do not fit: {shapes}.")
    if not hidden_TD.dtype == up.dtype == down_EDF.dtype or not hidden_TD.is_floating_point():
        raise RuntimeError(
            f"hidden, up and down must have one floating type, got {hidden_TD.dtype}, {up.dtype} and {down_EDF.dtype}."
        )
    if any(tensor.device != hidden_TD.device for tensor in tensors):
        raise RuntimeError(f"All tensors must be on one device, got {[str(tensor.device) for tensor in tensors]}.")


def check_kept(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_TD: Tensor,
    hidden_TD: Tensor,
    weights_TK: Tensor,
    slot_R: Tensor,
    inverse_TK: Tensor,
    offsets_E: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    activation: int,
) -> None:
    """The same for the backward, whose further tensors must be those that the forward gave."""
    check_arguments(hidden_TD, inverse_TK, weights_TK, up, down_EDF, activation)
    plan = (slot_R, inverse_TK, offsets_E)
    fits = grad_out_TD.shape == hidden_TD.shape and grad_out_TD.dtype is hidden_TD.dtype is pre.dtype
    fits = fits and slot_R.shape == (inverse_TK.numel(),) and offsets_E.shape == (up.shape[0],)
    fits = fits and pre.shape == (slot_R.shape[0], up.shape[1]) and weights_TK.dtype is torch.float32
    if not fits or any(tensor.dtype is not torch.int64 for tensor in plan):
        tensors = (grad_out_TD, weights_TK, *plan, pre)
        found = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors)
        raise RuntimeError(f"grad, weights, slot, inverse, offsets and pre are not those of one forward: {found}.")
    if any(tensor.device != hidden_TD.device for tensor in (grad_out_TD, slot_R, offsets_E, pre)):
        raise RuntimeError("All tensors must be on one device.")
