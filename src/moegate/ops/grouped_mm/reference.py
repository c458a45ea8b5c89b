"""The reference: a loop over the groups, one matrix product each."""

import torch
from torch import Tensor


def grouped_mm_reference(rows_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    check_grouped_mm(rows_RI, weight_EOI, offsets_E)
    out_RO = rows_RI.new_zeros(rows_RI.shape[0], weight_EOI.shape[1])
    start = 0
    for expert, end in enumerate(checked_ends(offsets_E, rows_RI.shape[0])):
        if end > start:
            torch.mm(rows_RI[start:end], weight_EOI[expert].mT, out=out_RO[start:end])
        start = end
    return out_RO


def grouped_outer_reference(left_RO: Tensor, right_RI: Tensor, offsets_E: Tensor) -> Tensor:
    check_grouped_outer(left_RO, right_RI, offsets_E)
    out_EOI = left_RO.new_zeros(offsets_E.shape[0], left_RO.shape[1], right_RI.shape[1])
    start = 0
    for expert, end in enumerate(checked_ends(offsets_E, left_RO.shape[0])):
        if end > start:
            torch.mm(left_RO[start:end].mT, right_RI[start:end], out=out_EOI[expert])
        start = end
    return out_EOI


def check_grouped_mm(rows_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> None:
    """Raises RuntimeError unless shapes and types fit; the values of the offsets are not looked at."""
    if (rows_RI.ndim, weight_EOI.ndim) != (2, 3) or rows_RI.shape[1] != weight_EOI.shape[2]:
        raise RuntimeError(
            f"rows {tuple(rows_RI.shape)} and weight {tuple(weight_EOI.shape)} must be [R, I] and [E, O, I]."
        )
    _check_types(rows_RI, weight_EOI, offsets_E)
    if offsets_E.shape[0] != weight_EOI.shape[0]:
        raise RuntimeError(
            f"offsets {tuple(offsets_E.shape)} must hold one end for each of {weight_EOI.shape[0]} groups."
        )


def check_grouped_outer(left_RO: Tensor, right_RI: Tensor, offsets_E: Tensor) -> None:
    """Raises RuntimeError unless shapes and types fit; the values of the offsets are not looked at."""
    if (left_RO.ndim, right_RI.ndim) != (2, 2) or left_RO.shape[0] != right_RI.shape[0]:
        raise RuntimeError(
            f"left {tuple(left_RO.shape)} and right {tuple(right_RI.shape)} must be [R, O] and [R, I], the same rows."
        )
    _check_types(left_RO, right_RI, offsets_E)


def _check_types(left: Tensor, right: Tensor, offsets_E: Tensor) -> None:
    if left.dtype != right.dtype or not left.is_floating_point():
        raise RuntimeError(f"Both sides of a product must have one floating type, got {left.dtype} and {right.dtype}.")
    if offsets_E.ndim != 1 or offsets_E.dtype is not torch.int64:
        raise RuntimeError(f"offsets {tuple(offsets_E.shape)} of {offsets_E.dtype} must be [E] of int64.")


def checked_ends(offsets_E: Tensor, num_rows: int) -> list[int]:
    """The end of each group's rows, read on the host; raises where they decrease or leave the rows.

    Example:
        >>> checked_ends(torch.tensor([1, 1, 4]), 4)
        [1, 1, 4]
    """
    ends: list[int] = offsets_E.tolist()
    before = 0
    for expert, end in enumerate(ends):
        if not before <= end <= num_rows:
            raise RuntimeError(
                f"offsets must grow from 0 to at most {num_rows} rows, but offsets[{expert}] is {end} after {before}."
            )
        before = end
    return ends
