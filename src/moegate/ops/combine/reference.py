"""The references of ``combine`` and of the dot products that are the gradient of its weights."""

import torch
from torch import Tensor

from moegate.ops.permute.reference import wide_type


def combine_reference(rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    shape = inverse_TK.shape[0], rows_RD.shape[1]
    sum_TD = torch.zeros(shape, dtype=wide_type(rows_RD.dtype), device=rows_RD.device)
    if rows_RD.shape[0] == 0:
        return sum_TD.to(rows_RD.dtype)
    for k in range(inverse_TK.shape[1]):
        term_TD = rows_RD[inverse_TK[:, k].clamp(min=0)].to(sum_TD.dtype)
        if weights_TK is not None:
            term_TD = term_TD * weights_TK[:, k, None]
        # What an empty slot would read may be NaN.
        sum_TD = torch.where((inverse_TK[:, k] < 0)[:, None], sum_TD, sum_TD + term_TD)
    return sum_TD.to(rows_RD.dtype)


def row_dots_reference(rows_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor) -> Tensor:
    wide = wide_type(rows_RD.dtype)
    if rows_RD.shape[0] == 0 or inverse_TK.shape[1] == 0:
        return torch.zeros(inverse_TK.shape, dtype=wide, device=rows_RD.device)
    wide_TD = hidden_TD.to(wide)
    dots_TK = torch.stack(
        [(rows_RD[inverse_TK[:, k].clamp(min=0)].to(wide) * wide_TD).sum(dim=-1) for k in range(inverse_TK.shape[1])],
        dim=1,
    )
    return dots_TK.masked_fill(inverse_TK < 0, 0.0)
