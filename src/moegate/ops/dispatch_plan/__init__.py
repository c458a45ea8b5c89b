"""Where each slot's row lies when rows are sorted by expert, and which slot each row belongs to.

Contract: rows are sorted by expert, then by token, then by slot (a stable counting sort). An expert's rows may be
padded to a multiple of ``alignment`` or to ``capacity`` rows; what exceeds the capacity is dropped in that order. The
result depends on the indices alone: not on threads, not on the instruction set.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moegate.ops.dispatch_plan.reference import dispatch_plan_reference
from moegate.ops.dispatch_plan.sizes import check_plan_arguments, most_rows
from moegate.ops.library import define, implement, register_fake
from moegate.ops.synchronization import may_look

__all__ = ["Places", "dispatch_plan"]

define(
    "dispatch_plan(Tensor index, int num_experts, int alignment, int capacity, bool fill, bool trim)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    dispatch_plan_reference,
)


class Places(NamedTuple):
    """The two ways between slots and rows, and how many rows each expert has.

    Attributes:
        counts: ``[E]`` int64, the slots that each expert serves.
        offsets: ``[E]`` int64, the end of each expert's rows, padding included.
        slot: ``[R]`` int64, the flat slot ``t · K + k`` of each row; -1 for a row of padding.
        inverse: ``[T, K]`` int64, the row of each slot; -1 for a slot that is empty or was dropped.
    """

    counts: Tensor
    offsets: Tensor
    slot: Tensor
    inverse: Tensor


def _fake(
    index_TK: Tensor, num_experts: int, alignment: int, capacity: int, fill: bool, trim: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_plan_arguments(index_TK, num_experts, alignment, capacity, fill)
    num_rows = (
        torch.library.get_ctx().new_dynamic_size()
        if trim and not fill
        else most_rows(index_TK.numel(), num_experts, alignment, capacity, fill)
    )
    counts_E = index_TK.new_empty(num_experts, dtype=torch.int64)
    slot_R = index_TK.new_empty(num_rows, dtype=torch.int64)
    return counts_E, torch.empty_like(counts_E), slot_R, index_TK.new_empty(index_TK.shape, dtype=torch.int64)


implement("dispatch_plan", "moegate.ops.dispatch_plan.gpu_operator:dispatch_plan")
register_fake("dispatch_plan", _fake)
_dispatch_plan = torch.ops.moegate.dispatch_plan.default


def dispatch_plan(
    index_TK: Tensor, num_experts: int, *, alignment: int = 1, capacity: int | None = None, fill: bool = False
) -> Places:
    """The places of all slots in rows sorted by expert.

    On the CPU there are as many rows as the experts' last one needs. On a GPU nothing waits for the device to say how
    many that are; and compiled, mapped by ``torch.vmap``, and on the meta device, the number can't depend on the
    indices. There it is the greatest possible, and the rows behind the last expert are padding.

    Args:
        index_TK: ``[T, K]`` int32 or int64 with any strides; -1 is an empty slot. A token may name an expert twice.
        num_experts: ``E``, up to 2^24.
        alignment: each expert's rows are padded to a multiple of it; up to 2^20.
        capacity: the most slots an expert serves; None for any number.
        fill: pads each expert's rows to exactly ``capacity``, also those of an expert that serves none.

    Raises:
        TypeError: when the indices are not int32 or int64.
        ValueError: when a size does not fit.
        RuntimeError: on the CPU, when an index is below -1 or not below ``num_experts``. On a GPU, where to look would
            make the host wait, such an index is an empty slot.

    Example:
        >>> places = dispatch_plan(torch.tensor([[2, 0], [0, -1]]), 3)
        >>> places.slot.tolist(), places.offsets.tolist(), places.inverse.tolist()
        ([1, 2, 0], [2, 2, 3], [[2, 0], [1, -1]])
    """
    if not isinstance(index_TK, Tensor):
        raise TypeError(f"index must be a tensor [T, K] of int32 or int64, got {type(index_TK).__name__}.")
    if index_TK.dtype is not torch.int64 and index_TK.dtype is not torch.int32:
        raise TypeError(f"index must be int32 or int64, got {index_TK.dtype}: convert it.")
    if index_TK.ndim != 2:
        raise ValueError(f"index must be [T, K], one row of experts per token; got {tuple(index_TK.shape)}.")
    if num_experts < 1 or alignment < 1 or (capacity is not None and capacity < 0):
        raise ValueError(
            f"num_experts={num_experts} and alignment={alignment} must be at least 1, "
            f"and capacity={capacity} at least 0 or None."
        )
    if fill and (capacity is None or alignment != 1):
        raise ValueError("fill=True pads to the capacity: give it one, and leave alignment 1.")
    trim = may_look(index_TK)
    limit = -1 if capacity is None else capacity
    return Places(*_dispatch_plan(index_TK, num_experts, alignment, limit, fill, trim))
