"""A layer's second half on devices that Triton serves: what is launched, for inference and for training."""

import torch
from torch import Tensor

from moegate.ops.combine.gpu_operator import combine
from moegate.ops.experts.activations import function_of
from moegate.ops.grouped_mm.gpu_operator import ELEMENTS, product, readable
from moegate.ops.library import falls_back
from moegate.ops.mixture.arguments import check_arguments
from moegate.ops.mixture.gpu_operator_decode import decode, is_decoding
from moegate.ops.mixture.gpu_products import Rows, planned_rows, product_of_rows
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
        falls_back("mixture", f"{hidden_TD.dtype} is for checking gradients")
        return mixture_reference(hidden_TD, index_TK, weights_TK, up, down_EDF, activation, weight_input)
    num_tokens, top_k = index_TK.shape
    if hidden_TD.numel() == 0 or top_k == 0 or down_EDF.numel() == 0:
        return torch.zeros_like(hidden_TD, memory_format=torch.contiguous_format)
    if is_decoding(num_tokens, num_tokens * top_k, up.shape[0]):
        return decode(hidden_TD, index_TK, weights_TK, (up, down_EDF), activation, weight_input)
    rows = planned_rows(index_TK, up.shape[0], hidden_TD)
    input_weights = weights_TK.contiguous() if weight_input else None
    inner_RF = _inner_values(hidden_TD, rows, (up, down_EDF), activation, input_weights=input_weights)
    out_RD = product_of_rows(inner_RF, down_EDF, rows)
    return combine(out_RD, rows.slot, rows.inverse, None if weight_input else weights_TK)


def trained_mixture(
    hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, up: Tensor, down_EDF: Tensor, activation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``moegate::trained_mixture``."""
    check_arguments(hidden_TD, index_TK, weights_TK, up, down_EDF, activation)
    if hidden_TD.dtype not in ELEMENTS:
        falls_back("trained_mixture", f"{hidden_TD.dtype} is for checking gradients")
        return trained_mixture_reference(hidden_TD, index_TK, weights_TK, up, down_EDF, activation)
    rows = planned_rows(index_TK, up.shape[0], hidden_TD)
    pre = hidden_TD.new_empty(rows.slot.shape[0], up.shape[1])
    inner_RF = _inner_values(hidden_TD, rows, (up, down_EDF), activation, pre=pre)
    out_TD = combine(product_of_rows(inner_RF, down_EDF, rows), rows.slot, rows.inverse, weights_TK)
    return out_TD, rows.slot, rows.inverse, rows.offsets, pre


def _inner_values(
    hidden_TD: Tensor,
    rows: Rows,
    projections: tuple[Tensor, Tensor],
    activation: int,
    *,
    input_weights: Tensor | None = None,
    pre: Tensor | None = None,
) -> Tensor:
    """``[R, F]``, what the activations give, from a product that reads the tokens where they are."""
    up, down_EDF = projections
    function, gated = function_of(activation)
    inner_RF = hidden_TD.new_empty(rows.slot.shape[0], down_EDF.shape[2])
    # A factor of a token is one of its products too.
    scaled = None if input_weights is None else (rows.slots, input_weights)
    product(
        readable(hidden_TD), up, rows.tiles, inner_RF,
        gathered=rows.slots, scaled=scaled, function=function, gated=gated, pre=pre,
    )  # fmt: skip
    return inner_RF
