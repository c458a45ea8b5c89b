"""Losses on the router's weight alone: rows that point apart spread the tokens without counting any."""

import torch
import torch.nn.functional as F
from torch import Tensor


def row_orthogonality(weight_ED: Tensor) -> Tensor:
    """``Σ_ij |(W Wᵀ - I)_ij|``: 0 for orthonormal rows.

    It needs no counts, so nothing is communicated. Rows can be orthonormal only if ``E <= D``.

    Example:
        >>> row_orthogonality(torch.eye(3, 8)).item()
        0.0

    Source: Omi et al., SimBal, arXiv 2506.14038.
    """
    gram_EE = weight_ED @ weight_ED.T
    return (gram_EE - torch.eye(weight_ED.shape[0], dtype=gram_EE.dtype, device=gram_EE.device)).abs().sum()


def row_cosine(weight_ED: Tensor) -> Tensor:
    """``mean_ij ((Ŵ Ŵᵀ - I)_ij)²`` with rows ``Ŵ`` of length 1: 0 for orthogonal rows of any length.

    Example:
        >>> row_cosine(5.0 * torch.eye(3, 8)).item()
        0.0

    Source: ERNIE 4.5, the router orthogonalization loss.
    """
    unit_ED = F.normalize(weight_ED, dim=-1)
    gram_EE = unit_ED @ unit_ED.T
    identity_EE = torch.eye(weight_ED.shape[0], dtype=gram_EE.dtype, device=gram_EE.device)
    return (gram_EE - identity_EE).square().mean()
