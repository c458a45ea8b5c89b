"""Rows by places that the caller made: they may repeat or leave out a row, which the operators' own never do."""

import torch
from torch import Tensor

from moegate.ascend.limits_rows import readable
from moegate.ops.combine import combine
from moegate.ops.permute import permute


def take_rows(hidden_TD: Tensor, slot_R: Tensor, top_k: int) -> Tensor:
    """``rows[r] = hidden[slot[r] // K]``; the gradient is summed in float32 (float64 in float64).

    Example:
        >>> take_rows(torch.tensor([[1.0], [5.0]]), torch.tensor([3, 3, 0]), top_k=2).flatten().tolist()
        [5.0, 5.0, 1.0]
    """
    inverse_N, distinct = inverse_places(slot_R, hidden_TD.shape[0] * top_k)
    if distinct:
        return permute(hidden_TD, slot_R, inverse_N.view(hidden_TD.shape[0], top_k))
    return hidden_TD.to(wide(hidden_TD.dtype)).index_select(0, slot_R // top_k).to(hidden_TD.dtype)


def sum_rows(rows_RD: Tensor, index_TK: Tensor, weights_TK: Tensor | None = None) -> Tensor:
    """``out[t] = Σ_k weights[t, k] · rows[index[t, k]]`` in the order of ``k``, in float32 (float64 in float64).

    An index that is negative or beyond the rows adds nothing.

    Example:
        >>> sum_rows(torch.tensor([[1.0], [10.0]]), torch.tensor([[0, 0], [1, -1], [2, 1]])).flatten().tolist()
        [2.0, 10.0, 10.0]
    """
    num_rows = rows_RD.shape[0]
    index_TK = index_TK.to(torch.int64)
    index_TK = torch.where((index_TK < 0) | (index_TK >= num_rows), -1, index_TK)
    slot_R, distinct = inverse_places(index_TK.reshape(-1), num_rows)
    if distinct or num_rows == 0:
        return combine(rows_RD, slot_R, index_TK, weights_TK)
    # A row for each slot: what several slots share is copied.
    copies_ND = rows_RD.to(wide(rows_RD.dtype)).index_select(0, index_TK.reshape(-1).clamp(min=0))
    slot_N = torch.arange(index_TK.numel(), device=index_TK.device)
    slot_N = torch.where(index_TK.reshape(-1) < 0, -1, slot_N)
    return combine(copies_ND, slot_N, slot_N.view_as(index_TK), weights_TK).to(rows_RD.dtype)


def inverse_places(place_R: Tensor, num_places: int) -> tuple[Tensor, bool]:
    """The row at each place, -1 where there is none, and whether it is known that no place has two rows.

    Example:
        >>> inverse, distinct = inverse_places(torch.tensor([2, -1, 0]), 4)
        >>> inverse.tolist(), distinct
        ([2, -1, 0, -1], True)
    """
    row_R = torch.arange(place_R.shape[0], device=place_R.device)
    # Rows without a place land in one place more, which is cut off again.
    safe_R = torch.where(place_R < 0, num_places, place_R)
    inverse = torch.full((num_places + 1,), -1, dtype=torch.int64, device=place_R.device).scatter(0, safe_R, row_R)
    distinct = readable(place_R) and bool(((inverse[safe_R] == row_R) | (place_R < 0)).all())
    return inverse[:num_places], distinct


def padded_places(place_R: Tensor, length: int) -> Tensor:
    """The first ``length`` places; -1 where there are fewer.

    Example:
        >>> padded_places(torch.tensor([4, 2]), 3).tolist()
        [4, 2, -1]
    """
    missing = max(0, length - place_R.shape[0])
    return torch.cat([place_R[:length], place_R.new_full((missing,), -1)])


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of such elements are made in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
