"""A layer's second half for training in plain PyTorch: forward, and a backward that is differentiable itself."""

import torch
from torch import Tensor

from moegate.ops.combine.reference import combine_reference
from moegate.ops.dispatch_plan.reference import dispatch_plan_reference
from moegate.ops.experts.activations import ACTIVATIONS
from moegate.ops.experts.backward_reference import activation_backward
from moegate.ops.experts.forward import experts_reference
from moegate.ops.grouped_mm import grouped_mm, grouped_outer
from moegate.ops.mixture.arguments import check_arguments
from moegate.ops.permute.reference import permute_reference, wide_type

Trained = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def trained_mixture_reference(
    hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, up: Tensor, down_EDF: Tensor, activation: int
) -> Trained:
    """Plan, permute, experts and combine, and what their backward needs."""
    check_arguments(hidden_TD, index_TK, weights_TK, up, down_EDF, activation)
    _, offsets_E, slot_R, inverse_TK = dispatch_plan_reference(index_TK, up.shape[0], 1, -1, False, False)
    rows_RD = permute_reference(hidden_TD, slot_R, inverse_TK, None)
    rows_RD, pre = experts_reference(rows_RD, up, down_EDF, offsets_E, activation, True)
    out_TD = combine_reference(rows_RD, slot_R, inverse_TK, weights_TK.to(wide_type(rows_RD.dtype)))
    return out_TD, slot_R, inverse_TK, offsets_E, pre


def trained_mixture_backward_reference(  # noqa: PLR0913, PLR0917 - the schema of the operator
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
    needs_hidden: bool,
    needs_weights: bool,
    needs_projections: bool,
) -> Gradients:
    """The gradients, of which the experts' outputs are no part: see ``trained_mixture_backward``."""
    wide = wide_type(pre.dtype)
    grad_RD = permute_reference(grad_out_TD, slot_R, inverse_TK, None)
    grad_inner_RF = grouped_mm(grad_RD, down_EDF.mT, offsets_E).to(wide)
    weight_R1 = _of_rows(weights_TK.to(wide), slot_R)[:, None]
    inner_RF, grad_pre = activation_backward(pre.to(wide), grad_inner_RF * weight_R1, ACTIVATIONS[activation])
    grad_pre = grad_pre.to(pre.dtype)
    none = pre.new_empty(0)
    grads = [none.clone() for _ in range(4)]
    if needs_hidden:
        rows_RD = grouped_mm(grad_pre, up.mT, offsets_E)
        grads[0] = combine_reference(rows_RD, slot_R, inverse_TK, None)
    if needs_weights:
        grads[1] = _of_slots((inner_RF * grad_inner_RF).sum(dim=1), inverse_TK).to(weights_TK.dtype)
    if needs_projections:
        grads[2] = grouped_outer(grad_pre, permute_reference(hidden_TD, slot_R, inverse_TK, None), offsets_E)
        grads[3] = grouped_outer(grad_RD, (inner_RF * weight_R1).to(pre.dtype), offsets_E)
    return grads[0], grads[1], grads[2], grads[3]


def _of_rows(values_TK: Tensor, slot_R: Tensor) -> Tensor:
    """``[R]``, the value of each row's slot; 0 for a row without one."""
    if values_TK.numel() == 0:
        return values_TK.new_zeros(slot_R.shape)
    return torch.where(slot_R < 0, 0.0, values_TK.reshape(-1)[slot_R.clamp(min=0)])


def _of_slots(values_R: Tensor, inverse_TK: Tensor) -> Tensor:
    """``[T, K]``, the value of each slot's row; 0 for a slot without one."""
    if values_R.numel() == 0:
        return values_R.new_zeros(inverse_TK.shape)
    return torch.where(inverse_TK < 0, 0.0, values_R[inverse_TK.clamp(min=0)])
