"""The backward of the experts in plain PyTorch: what the kernel computes, differentiable once more."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from moegate.ops.experts.activations import ACTIVATIONS, GATED, function_of, number_of
from moegate.ops.grouped_mm import grouped_mm, grouped_outer

__all__ = ["activation_backward", "check_shapes", "experts_backward_reference"]


def experts_backward_reference(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_RD: Tensor,
    rows_RD: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: int,
    needs_rows: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Grouped products around the derivative of the activation; see ``experts_backward``."""
    check_shapes(grad_out_RD, rows_RD, pre, up, down_EDF, activation)
    grad_inner_RF = grouped_mm(grad_out_RD, down_EDF.mT, offsets_E)
    inner_RF, grad_pre = activation_backward(pre, grad_inner_RF, ACTIVATIONS[activation])
    empty = rows_RD.new_empty(0)
    return (
        grouped_mm(grad_pre, up.mT, offsets_E) if needs_rows else empty,
        grouped_outer(grad_pre, rows_RD, offsets_E) if needs_weights else empty.clone(),
        grouped_outer(grad_out_RD, inner_RF, offsets_E) if needs_weights else empty.clone(),
    )


def check_shapes(
    grad_out_RD: Tensor, rows_RD: Tensor, pre: Tensor, up: Tensor, down_EDF: Tensor, activation: int
) -> None:
    """Raises RuntimeError unless the arguments of the backward fit one another."""
    if not 0 <= activation < len(ACTIVATIONS):
        raise RuntimeError(f"activation={activation} is unknown: expected 0 to {len(ACTIVATIONS) - 1}.")
    fits = (rows_RD.ndim, down_EDF.ndim) == (2, 3) and grad_out_RD.shape == rows_RD.shape
    if fits:
        width = down_EDF.shape[2] * (2 if ACTIVATIONS[activation] in GATED else 1)
        fits = up.shape == (down_EDF.shape[0], width, rows_RD.shape[1]) and pre.shape == (rows_RD.shape[0], width)
    if not fits:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (grad_out_RD, rows_RD, pre, up, down_EDF))
        raise RuntimeError(f"grad_out, rows, pre, up and down do not fit: {shapes}.")


def activation_backward(pre: Tensor, grad_inner_RF: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The inner values once more, and the gradient of what went into the activation.

    Args:
        pre: ``[R, 2F]`` for the gated activations, gate first; else ``[R, F]``.
        grad_inner_RF: ``[R, F]``, the gradient of the inner values.
        activation: one of the six names.

    Returns:
        ``(inner [R, F], grad_pre)``, computed in float32 at least and rounded once to the dtype of ``pre``.

    Example:
        >>> import torch
        >>> [t.tolist() for t in activation_backward(torch.tensor([[3.0]]), torch.tensor([[1.0]]), "relu2")]
        [[[9.0]], [[6.0]]]
    """
    dtype = pre.dtype
    wide = torch.promote_types(dtype, torch.float32)
    pre, grad_inner_RF = pre.to(wide), grad_inner_RF.to(wide)
    function, gated = function_of(number_of(activation))
    if gated:
        gate_RF, up_RF = pre.chunk(2, dim=-1)
        value_RF, slope_RF = _value_and_slope(gate_RF, function)
        grad_pre = torch.cat([grad_inner_RF * up_RF * slope_RF, grad_inner_RF * value_RF], dim=-1)
        return (value_RF * up_RF).to(dtype), grad_pre.to(dtype)
    value_RF, slope_RF = _value_and_slope(pre, function)
    return value_RF.to(dtype), (grad_inner_RF * slope_RF).to(dtype)


def _value_and_slope(values: Tensor, function: str) -> tuple[Tensor, Tensor]:
    """A function and its derivative, both differentiable again."""
    if function == "silu":
        sigmoid = torch.sigmoid(values)
        return values * sigmoid, sigmoid * (1 + values * (1 - sigmoid))
    if function == "gelu":
        below = 0.5 * (1 + torch.erf(values * math.sqrt(0.5)))
        return values * below, below + values * torch.exp(-0.5 * values * values) * (0.5 / math.pi) ** 0.5
    positive = functional.relu(values)
    if function == "relu2":
        return positive * positive, 2 * positive
    return positive, (~(values <= 0)).to(values.dtype)
