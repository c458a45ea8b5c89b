"""The operators of ``combine`` and of the gradients between tokens and rows, with their references and fakes."""

from torch import Tensor

from moegate.ops.combine.reference import combine_reference, row_dots_reference
from moegate.ops.library import define, implement, register_fake
from moegate.ops.permute.reference import check_range, permute_reference, wide_type
from moegate.ops.permute.shapes import check_alike, check_matrix, check_places, check_weights


def _check_combine(rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> None:
    check_places(slot_R, inverse_TK)
    check_matrix("rows", rows_RD, slot_R)
    check_weights(weights_TK, inverse_TK, rows_RD.dtype)


def _check_both(
    rows_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None
) -> None:
    _check_combine(rows_RD, slot_R, inverse_TK, weights_TK)
    check_matrix("hidden", hidden_TD, inverse_TK)
    check_alike(rows_RD, hidden_TD)


def _combine(rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    _check_combine(rows_RD, slot_R, inverse_TK, weights_TK)
    check_range("inverse", inverse_TK, slot_R.shape[0])
    return combine_reference(rows_RD, slot_R, inverse_TK, weights_TK)


def _combine_fake(rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    _check_combine(rows_RD, slot_R, inverse_TK, weights_TK)
    return rows_RD.new_empty(inverse_TK.shape[0], rows_RD.shape[1])


def _row_dots(rows_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor) -> Tensor:
    _check_both(rows_RD, hidden_TD, slot_R, inverse_TK, None)
    check_range("inverse", inverse_TK, slot_R.shape[0])
    return row_dots_reference(rows_RD, hidden_TD, slot_R, inverse_TK)


def _row_dots_fake(rows_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor) -> Tensor:
    _check_both(rows_RD, hidden_TD, slot_R, inverse_TK, None)
    return rows_RD.new_empty(inverse_TK.shape, dtype=wide_type(rows_RD.dtype))


def _combine_backward(
    grad_TD: Tensor, rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor
) -> tuple[Tensor, Tensor]:
    _check_both(rows_RD, grad_TD, slot_R, inverse_TK, weights_TK)
    check_range("slot", slot_R, inverse_TK.numel())
    check_range("inverse", inverse_TK, slot_R.shape[0])
    grad_rows_RD = permute_reference(grad_TD, slot_R, inverse_TK, weights_TK)
    return grad_rows_RD, row_dots_reference(rows_RD, grad_TD, slot_R, inverse_TK)


def _permute_backward(
    grad_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor
) -> tuple[Tensor, Tensor]:
    _check_both(grad_RD, hidden_TD, slot_R, inverse_TK, weights_TK)
    check_range("inverse", inverse_TK, slot_R.shape[0])
    grad_hidden_TD = combine_reference(grad_RD, slot_R, inverse_TK, weights_TK)
    return grad_hidden_TD, row_dots_reference(grad_RD, hidden_TD, slot_R, inverse_TK)


def _backward_fake(
    grad: Tensor, other: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """Both gradients of a product: of what ``other`` is the size of, and of the weights."""
    check_places(slot_R, inverse_TK)
    check_alike(grad, other)
    check_weights(weights_TK, inverse_TK, grad.dtype)
    return other.new_empty(other.shape), weights_TK.new_empty(weights_TK.shape)


def define_operators() -> None:
    """Registers them; once, on import."""
    places = "Tensor slot, Tensor inverse"
    define(f"combine(Tensor rows, {places}, Tensor? weights) -> Tensor", _combine)
    define(f"row_dots(Tensor rows, Tensor hidden, {places}) -> Tensor", _row_dots)
    define(
        f"combine_backward(Tensor grad, Tensor rows, {places}, Tensor weights) -> (Tensor, Tensor)", _combine_backward
    )
    define(
        f"permute_backward(Tensor grad, Tensor hidden, {places}, Tensor weights) -> (Tensor, Tensor)", _permute_backward
    )
    for name in ("combine", "row_dots", "combine_backward", "permute_backward"):
        implement(name, f"moegate.ops.combine.gpu_operator:{name}")
    register_fake("combine", _combine_fake)
    register_fake("row_dots", _row_dots_fake)
    register_fake("combine_backward", _backward_fake)
    register_fake("permute_backward", _backward_fake)
