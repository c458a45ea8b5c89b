"""Rows from tokens: each row is a copy of its token, multiplied by the weight of its slot where there is one.

Contract: ``rows[r] = weights[s] · hidden[s // K]`` for the slot ``s = slot[r]``; a row without a slot (-1) is 0. The
product is taken in float32 (float64 in float64) and rounded once. ``slot`` and ``inverse`` are those of
``dispatch_plan``; the way back, which gradients take, is ``combine``.
"""

import torch
from torch import Tensor

from moegate.ops.library import define, implement, register_fake
from moegate.ops.permute.calling import fitting_weights, needs_graph, needs_reference
from moegate.ops.permute.reference import check_range, permute_reference
from moegate.ops.permute.shapes import check_matrix, check_places, check_weights

__all__ = ["permute"]


def _checked(hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> None:
    check_places(slot_R, inverse_TK)
    check_matrix("hidden", hidden_TD, inverse_TK)
    check_weights(weights_TK, inverse_TK, hidden_TD.dtype)


def _reference(hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    _checked(hidden_TD, slot_R, inverse_TK, weights_TK)
    check_range("slot", slot_R, inverse_TK.numel())
    return permute_reference(hidden_TD, slot_R, inverse_TK, weights_TK)


def _fake(hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    _checked(hidden_TD, slot_R, inverse_TK, weights_TK)
    return hidden_TD.new_empty(slot_R.shape[0], hidden_TD.shape[1])


define("permute(Tensor hidden, Tensor slot, Tensor inverse, Tensor? weights) -> Tensor", _reference)
implement("permute", "moegate.ops.permute.gpu_operator:permute")
register_fake("permute", _fake)
_permute = torch.ops.moegate.permute.default


def permute(hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None = None) -> Tensor:
    """The rows of the tokens, sorted as ``slot_R`` says.

    Args:
        hidden_TD: ``[T, D]``; the rows may lie anywhere.
        slot_R: ``[R]`` int64, the flat slot ``t · K + k`` of each row, -1 for a row of zeros.
        inverse_TK: ``[T, K]`` int64, the row of each slot, -1 for none: the inverse of ``slot_R``.
        weights_TK: ``[T, K]``, the factor of each slot's row; None for 1.

    Returns:
        ``[R, D]`` in the type of the hidden states.

    Raises:
        ValueError: when the shapes do not fit.
        RuntimeError: on the CPU, when a slot is out of range. On a GPU, where to look would make the host wait, such a
            row is one of zeros.

    Example:
        >>> slot, inverse = torch.tensor([1, 2, 0]), torch.tensor([[2, 0], [1, -1]])
        >>> permute(torch.tensor([[1.0], [5.0]]), slot, inverse).flatten().tolist()
        [1.0, 5.0, 1.0]
    """
    if hidden_TD.ndim != 2 or inverse_TK.ndim != 2 or hidden_TD.shape[0] != inverse_TK.shape[0]:
        raise ValueError(
            f"hidden {tuple(hidden_TD.shape)} and inverse {tuple(inverse_TK.shape)} do not fit: "
            "expected [T, D] and [T, K]."
        )
    weights_TK = fitting_weights(weights_TK, inverse_TK, hidden_TD.dtype)
    if needs_reference(hidden_TD):
        return permute_reference(hidden_TD, slot_R, inverse_TK, weights_TK)
    if needs_graph(hidden_TD, weights_TK):
        return _permute(hidden_TD, slot_R, inverse_TK, weights_TK)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():  # PyTorch's own way past a formula that nobody asks for
        return _permute(hidden_TD, slot_R, inverse_TK, weights_TK)  # type: ignore[no-any-return]
