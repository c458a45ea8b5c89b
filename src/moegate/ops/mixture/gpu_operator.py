"""A layer's second half on devices that Triton serves: what is launched, for inference and for training."""

from typing import NamedTuple

import torch
from torch import Tensor

from moegate.ops.combine.gpu_operator import combine
from moegate.ops.dispatch_plan.gpu_operator import dispatch_plan
from moegate.ops.experts.gpu_operator import function_of
from moegate.ops.grouped_mm.gpu_operator import ELEMENTS, Slots, product, tiles_of
from moegate.ops.mixture.arguments import check_arguments
from moegate.ops.mixture.gpu_operator_decode import decode, is_decoding
from moegate.ops.mixture.inference import mixture_reference
from moegate.ops.mixture.training_reference import trained_mixture_reference


def mixture(  # noqa: PLR0917 - the schema of the operator
    hidden_TD: Tensor,
    index_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    activation: int,
    weight_input: bool,
) -> Tensor:
    """``moegate::mixture``."""
    check_arguments(hidden_TD, index_TK, weights_TK, up, down_EDF, activation)
    if hidden_TD.dtype not in ELEMENTS:
        return mixture_reference(hidden_TD, index_TK, weights_TK, up, down_EDF, activation, weight_input)
    num_tokens, top_k = index_TK.shape
    if hidden_TD.numel() == 0 or top_k == 0 or down_EDF.numel() == 0:
        return torch.zeros_like(hidden_TD, memory_format=torch.contiguous_format)
    if is_decoding(num_tokens, num_tokens * top_k, up.shape[0]):
        return decode(hidden_TD, index_TK, weights_TK, (up, down_EDF), activation, weight_input)
    plan = _plan(index_TK, up.shape[0])
    input_weights = weights_TK.contiguous() if weight_input else None
    rows_RD = _run_experts(hidden_TD, plan, (up, down_EDF), activation, input_weights=input_weights)
    return combine(rows_RD, plan.slot, plan.inverse, None if weight_input else weights_TK)


def trained_mixture(  # noqa: PLR0917 - the schema of the operator
    hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, up: Tensor, down_EDF: Tensor, activation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``moegate::trained_mixture``."""
    check_arguments(hidden_TD, index_TK, weights_TK, up, down_EDF, activation)
    if hidden_TD.dtype not in ELEMENTS:
        return trained_mixture_reference(hidden_TD, index_TK, weights_TK, up, down_EDF, activation)
    plan = _plan(index_TK, up.shape[0])
    pre = hidden_TD.new_empty(plan.slot.shape[0], up.shape[1])
    rows_RD = _run_experts(hidden_TD, plan, (up, down_EDF), activation, pre=pre)
    out_TD = combine(rows_RD, plan.slot, plan.inverse, weights_TK)
    return out_TD, plan.slot, plan.inverse, plan.offsets, pre


class _Plan(NamedTuple):
    """``dispatch_plan`` of all slots, none left out, so that the number of rows is known: ``T · K``."""

    offsets: Tensor
    slot: Tensor
    inverse: Tensor


def _plan(index_TK: Tensor, num_experts: int) -> _Plan:
    _, *places = dispatch_plan(index_TK, num_experts, 1, -1, False, False)
    return _Plan(*places)


def _run_experts(
    hidden_TD: Tensor,
    plan: _Plan,
    projections: tuple[Tensor, Tensor],
    activation: int,
    *,
    input_weights: Tensor | None = None,
    pre: Tensor | None = None,
) -> Tensor:
    """The experts' outputs ``[R, D]``: two products, of which the first reads the tokens and applies the activation."""
    up, down_EDF = projections
    num_rows, (_, hidden_size, width) = plan.slot.shape[0], down_EDF.shape
    slots = Slots(plan.slot, num_rows, max(1, plan.inverse.shape[1]))
    tiles = tiles_of(plan.offsets, num_rows, hidden_TD.dtype)
    function, gated = function_of(activation)
    inner_RF = hidden_TD.new_empty(num_rows, width)
    # A factor of a token is one of its products too.
    scaled = None if input_weights is None else (slots, input_weights)
    product(hidden_TD, up, tiles, inner_RF, gathered=slots, scaled=scaled, function=function, gated=gated, pre=pre)
    rows_RD = hidden_TD.new_empty(num_rows, hidden_size)
    product(inner_RF, down_EDF, tiles, rows_RD)
    return rows_RD
