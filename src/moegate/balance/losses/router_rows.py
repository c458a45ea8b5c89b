"""Losses on the router's weight alone: rows that point apart spread the tokens without counting any."""

import torch
import torch.nn.functional as F
from torch import Tensor


def row_orthogonality(weight_ED: Tensor) -> Tensor:
    """``Σ_ij |(W Wᵀ - I)_ij|``: 0 for orthonormal rows.

    It needs no counts, so nothing is communicated. Rows can be orthonormal only if ``E <= D``. Computed in float32
    at least, whatever the weight's dtype and under autocast.

    Example:
        >>> row_orthogonality(torch.eye(3, 8)).item()
        0.0

    Source: Omi et al., SimBal, arXiv 2506.14038.
    """
    return _off_identity(weight_ED, unit_rows=False).abs().sum()


def row_cosine(weight_ED: Tensor) -> Tensor:
    """``mean_ij ((Ŵ Ŵᵀ - I)_ij)²`` with rows ``Ŵ`` of length 1: 0 for orthogonal rows of any length.

    Computed in float32 at least, whatever the weight's dtype and under autocast.

    Example:
        >>> row_cosine(5.0 * torch.eye(3, 8)).item()
        0.0

    Source: ERNIE 4.5, the router orthogonalization loss.
    """
    return _off_identity(weight_ED, unit_rows=True).square().mean()


def _off_identity(weight_ED: Tensor, *, unit_rows: bool) -> Tensor:
    """``W Wᵀ - I``, ``[E, E]``; float32 (float64 for a float64 weight) under autocast and for narrow weights too."""
    with torch.autocast(weight_ED.device.type, enabled=False):  # in bf16, the differences that count are noise
        wide_ED = weight_ED if weight_ED.dtype == torch.float64 else weight_ED.float()
        rows_ED = F.normalize(wide_ED, dim=-1) if unit_rows else wide_ED
        return rows_ED @ rows_ED.T - torch.eye(rows_ED.shape[0], dtype=rows_ED.dtype, device=rows_ED.device)
