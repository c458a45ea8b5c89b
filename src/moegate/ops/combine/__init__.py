"""Tokens from rows: each token is the weighted sum of the rows of its slots.

Contract: ``out[t] = Σ_k weights[t, k] · rows[inverse[t, k]]`` over the slots that have a row, in the order of ``k``:
multiplied and added in float32 (float64 in float64), rounded once at the end. A slot without a row (-1) adds nothing,
whatever its weight is; a row without a slot is not looked at. ``slot`` and ``inverse`` are those of ``dispatch_plan``;
the way back, which gradients take, is ``permute``.
"""

import torch
from torch import Tensor

from moegate.ops.combine.derivatives import register_derivatives
from moegate.ops.combine.operators import define_operators
from moegate.ops.combine.reference import combine_reference
from moegate.ops.permute.calling import fitting_weights, needs_graph, needs_reference

__all__ = ["combine"]

define_operators()
register_derivatives()
_combine = torch.ops.moegate.combine.default


def combine(rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None = None) -> Tensor:
    """The tokens' sums of their rows.

    Args:
        rows_RD: ``[R, D]``; the rows may lie anywhere.
        slot_R: ``[R]`` int64, the flat slot ``t · K + k`` of each row, -1 for a row that no token asks for.
        inverse_TK: ``[T, K]`` int64, the row of each slot, -1 for none: the inverse of ``slot_R``.
        weights_TK: ``[T, K]``, the factor of each slot's row; None for 1.

    Returns:
        ``[T, D]`` in the type of the rows.

    Raises:
        ValueError: when the shapes do not fit.
        RuntimeError: on the CPU, when a row number is out of range. On a GPU, where to look would make the host wait,
            such a slot has no row.

    Example:
        >>> slot, inverse = torch.tensor([1, 2, 0]), torch.tensor([[2, 0], [1, -1]])
        >>> combine(torch.tensor([[1.0], [10.0], [100.0]]), slot, inverse).flatten().tolist()
        [101.0, 10.0]
    """
    if rows_RD.ndim != 2 or slot_R.ndim != 1 or inverse_TK.ndim != 2 or rows_RD.shape[0] != slot_R.shape[0]:
        raise ValueError(
            f"rows {tuple(rows_RD.shape)}, slot {tuple(slot_R.shape)} and inverse {tuple(inverse_TK.shape)} do not "
            "fit: expected [R, D], [R] and [T, K]."
        )
    weights_TK = fitting_weights(weights_TK, inverse_TK, rows_RD.dtype)
    if needs_reference(rows_RD):
        return combine_reference(rows_RD, slot_R, inverse_TK, weights_TK)
    if needs_graph(rows_RD, weights_TK):
        return _combine(rows_RD, slot_R, inverse_TK, weights_TK)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():
        return _combine(rows_RD, slot_R, inverse_TK, weights_TK)  # type: ignore[no-any-return]
