"""The operators of ``wide_linear`` and of its gradient, with their references and derivatives."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moegate.ops.library import define, implement, register_autograd, register_fake

__all__ = ["WIDE_LINEAR", "check_gradient", "check_matrices"]

_Context = Any  # what register_autograd passes has no public type
_Gradients = tuple[Tensor, Tensor]


def check_matrices(hidden_TD: Tensor, weight_ED: Tensor) -> None:
    """Raises RuntimeError unless these can be multiplied."""
    if (hidden_TD.ndim, weight_ED.ndim) != (2, 2) or hidden_TD.shape[1] != weight_ED.shape[1]:
        raise RuntimeError(
            f"hidden {tuple(hidden_TD.shape)} and weight {tuple(weight_ED.shape)} must be [T, D], [E, D]."
        )
    if not hidden_TD.dtype is weight_ED.dtype is torch.bfloat16:
        raise RuntimeError(f"hidden and weight must be bfloat16, got {hidden_TD.dtype} and {weight_ED.dtype}.")


def check_gradient(grad_TE: Tensor, hidden_TD: Tensor, weight_ED: Tensor) -> None:
    """Raises RuntimeError unless this is a gradient of the product."""
    check_matrices(hidden_TD, weight_ED)
    if grad_TE.dtype is not torch.float32 or grad_TE.shape != (hidden_TD.shape[0], weight_ED.shape[0]):
        raise RuntimeError(
            f"grad must be {(hidden_TD.shape[0], weight_ED.shape[0])} of float32, got {tuple(grad_TE.shape)} of "
            f"{grad_TE.dtype}."
        )


def _reference(hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    check_matrices(hidden_TD, weight_ED)
    return functional.linear(hidden_TD.float(), weight_ED.float())


def _fake(hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    check_matrices(hidden_TD, weight_ED)
    return hidden_TD.new_empty(hidden_TD.shape[0], weight_ED.shape[0], dtype=torch.float32)


def _backward_reference(
    grad_TE: Tensor, hidden_TD: Tensor, weight_ED: Tensor, needs_hidden: bool, needs_weight: bool
) -> _Gradients:
    check_gradient(grad_TE, hidden_TD, weight_ED)
    return (
        (grad_TE @ weight_ED.float()).bfloat16() if needs_hidden else hidden_TD.new_empty(0),
        (grad_TE.mT @ hidden_TD.float()).bfloat16() if needs_weight else weight_ED.new_empty(0),
    )


def _backward_fake(
    grad_TE: Tensor, hidden_TD: Tensor, weight_ED: Tensor, needs_hidden: bool, needs_weight: bool
) -> _Gradients:
    check_gradient(grad_TE, hidden_TD, weight_ED)
    return (
        hidden_TD.new_empty(hidden_TD.shape if needs_hidden else 0),
        weight_ED.new_empty(weight_ED.shape if needs_weight else 0),
    )


define("wide_linear(Tensor hidden, Tensor weight) -> Tensor", _reference)
define(
    "wide_linear_backward(Tensor grad, Tensor hidden, Tensor weight, bool needs_hidden, bool needs_weight)"
    " -> (Tensor, Tensor)",
    _backward_reference,
)
implement("wide_linear", "moegate.ops.wide_linear.gpu_operator:wide_linear")
implement("wide_linear_backward", "moegate.ops.wide_linear.gpu_operator:wide_linear_backward")
register_fake("wide_linear", _fake)
register_fake("wide_linear_backward", _backward_fake)
WIDE_LINEAR = torch.ops.moegate.wide_linear.default


def _save_inputs(ctx: _Context, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.set_materialize_grads(False)


def _backward(ctx: _Context, grad_TE: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    needs_hidden, needs_weight = ctx.needs_input_grad
    if grad_TE is None:
        return None, None
    hidden_TD, weight_ED = torch.ops.moegate.wide_linear_backward(
        grad_TE, *ctx.saved_tensors, needs_hidden, needs_weight
    )
    return hidden_TD if needs_hidden else None, weight_ED if needs_weight else None


def _second_backward(ctx: _Context, grad_TD: Tensor | None, grad_ED: Tensor | None) -> tuple[Tensor | None, ...]:
    """The product is linear in each, so these are its products too, by PyTorch's operators."""
    grad_TE, hidden_TD, weight_ED = ctx.saved_tensors
    found: list[Tensor | None] = [None, None, None]
    if grad_TD is not None:
        found[0] = grad_TD.float() @ weight_ED.float().mT
        found[2] = (grad_TE.mT @ grad_TD.float()).bfloat16()
    if grad_ED is not None:
        more_TE = hidden_TD.float() @ grad_ED.float().mT
        found[0] = more_TE if found[0] is None else found[0] + more_TE
        found[1] = (grad_TE @ grad_ED.float()).bfloat16()
    return (*found, None, None)


register_autograd("wide_linear", _backward, _save_inputs)
register_autograd("wide_linear_backward", _second_backward, _save_inputs)
