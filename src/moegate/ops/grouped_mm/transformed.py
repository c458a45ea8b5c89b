"""The products out of PyTorch's own operators: for ``torch.func`` and forward derivatives, which need to see them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from moegate.ops.grouped_mm.reference import check_grouped_mm, check_grouped_outer, checked_ends
from moegate.ops.transforms import is_mapped


def grouped_mm_of_operators(rows_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """What ``grouped_mm`` computes.

    Example:
        >>> rows, weight = torch.ones(3, 2), torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]])
        >>> grouped_mm_of_operators(rows, weight, torch.tensor([1, 2])).flatten().tolist()
        [2.0, 4.0, 0.0]
    """
    check_grouped_mm(rows_RI, weight_EOI, offsets_E)
    num_rows = rows_RI.shape[0]
    if _can_be_read(offsets_E):
        ends = [0, *checked_ends(offsets_E, num_rows)]
        parts = [rows_RI[ends[e] : ends[e + 1]] @ weight_EOI[e].mT for e in range(len(ends) - 1)]
        return torch.cat([*parts, rows_RI.new_zeros(num_rows - ends[-1], weight_EOI.shape[1])])
    out_RO = rows_RI.new_zeros(num_rows, weight_EOI.shape[1])
    for e, own_R1 in enumerate(_own_rows(offsets_E, num_rows)):
        # The rows of other groups are zero: what this group's matrix would make of them must not reach a gradient.
        out_RO = torch.where(own_R1, torch.where(own_R1, rows_RI, 0.0) @ weight_EOI[e].mT, out_RO)
    return out_RO


def grouped_outer_of_operators(left_RO: Tensor, right_RI: Tensor, offsets_E: Tensor) -> Tensor:
    """What ``grouped_outer`` computes.

    Example:
        >>> right = torch.tensor([[1.0], [5.0]])
        >>> grouped_outer_of_operators(torch.ones(2, 1), right, torch.tensor([1, 2])).flatten().tolist()
        [1.0, 5.0]
    """
    check_grouped_outer(left_RO, right_RI, offsets_E)
    num_rows = left_RO.shape[0]
    if _can_be_read(offsets_E):
        ends = [0, *checked_ends(offsets_E, num_rows)]
        own = [slice(ends[e], ends[e + 1]) for e in range(len(ends) - 1)]
        parts = [left_RO[rows].mT @ right_RI[rows] for rows in own]
    else:
        parts = [
            torch.where(own_R1, left_RO, 0.0).mT @ torch.where(own_R1, right_RI, 0.0)
            for own_R1 in _own_rows(offsets_E, num_rows)
        ]
    return torch.stack(parts) if parts else left_RO.new_zeros(0, left_RO.shape[1], right_RI.shape[1])


def _can_be_read(offsets_E: Tensor) -> bool:
    """Whether the host may look at them: not while a compiler traces, nor where each sample of a vmap has its own."""
    return not (torch.compiler.is_compiling() or is_mapped(offsets_E))


def _own_rows(offsets_E: Tensor, num_rows: int) -> Iterator[Tensor]:
    """``[R, 1]`` for each group: which rows are its own."""
    place_R1 = torch.arange(num_rows, device=offsets_E.device)[:, None]
    before_R1 = torch.zeros_like(place_R1, dtype=torch.bool)
    for e in range(offsets_E.shape[0]):
        until_R1 = place_R1 < offsets_E[e]
        yield until_R1 & ~before_R1
        before_R1 = until_R1
