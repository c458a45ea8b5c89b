"""Weighted rows and their sum per token, accumulated in float32 whatever the rows are in."""

import torch
from torch import Tensor


def scaled(rows_RD: Tensor, weight_R: Tensor) -> Tensor:
    """Rows times their weights, multiplied in the weights' type and returned in the rows'."""
    return (rows_RD * weight_R[:, None]).to(rows_RD.dtype)


def add_rows(rows_RD: Tensor, token_R: Tensor, weight_R: Tensor | None, num_tokens: int) -> Tensor:
    """``out[token[r]] += weight[r] · rows[r]``, in the order of the rows, rounded to the rows' type once at the end.

    Example:
        >>> add_rows(torch.ones(2, 1), torch.tensor([1, 1]), torch.tensor([0.5, 0.25]), 2).flatten().tolist()
        [0.0, 0.75]
    """
    wide = torch.float64 if rows_RD.dtype == torch.float64 else torch.float32
    wide_RD = rows_RD.to(wide)
    if weight_R is not None:
        wide_RD = wide_RD * weight_R.to(wide)[:, None]
    out_TD = torch.zeros(num_tokens, rows_RD.shape[1], dtype=wide, device=rows_RD.device)
    return out_TD.index_add(0, token_R, wide_RD).to(rows_RD.dtype)
