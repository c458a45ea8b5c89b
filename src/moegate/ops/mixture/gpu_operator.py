"""A layer's second half on devices that Triton serves: what is launched, for inference and for training."""

import torch
from torch import Tensor

from moegate.ops.combine.gpu_operator import combine
from moegate.ops.dispatch_plan.gpu_operator import dispatch_plan
from moegate.ops.experts.gpu_operator import experts
from moegate.ops.mixture.arguments import check_arguments
from moegate.ops.mixture.gpu_operator_decode import decode, is_decoding
from moegate.ops.permute.gpu_operator import permute


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
    num_tokens, top_k = index_TK.shape
    if hidden_TD.numel() == 0 or top_k == 0 or down_EDF.numel() == 0:
        return torch.zeros_like(hidden_TD, memory_format=torch.contiguous_format)
    if is_decoding(num_tokens, num_tokens * top_k, up.shape[0]):
        return decode(hidden_TD, index_TK, weights_TK, (up, down_EDF), activation, weight_input)
    _, offsets_E, slot_R, inverse_TK = dispatch_plan(index_TK, up.shape[0], 1, -1, False, False)
    rows_RD = permute(hidden_TD, slot_R, inverse_TK, weights_TK if weight_input else None)
    rows_RD, _ = experts(rows_RD, up, down_EDF, offsets_E, activation, False)
    return combine(rows_RD, slot_R, inverse_TK, None if weight_input else weights_TK)


def trained_mixture(  # noqa: PLR0917 - the schema of the operator
    hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, up: Tensor, down_EDF: Tensor, activation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``moegate::trained_mixture``."""
    check_arguments(hidden_TD, index_TK, weights_TK, up, down_EDF, activation)
    _, offsets_E, slot_R, inverse_TK = dispatch_plan(index_TK, up.shape[0], 1, -1, False, False)
    rows_RD = permute(hidden_TD, slot_R, inverse_TK, None)
    rows_RD, pre = experts(rows_RD, up, down_EDF, offsets_E, activation, True)
    return combine(rows_RD, slot_R, inverse_TK, weights_TK), slot_R, inverse_TK, offsets_E, pre
