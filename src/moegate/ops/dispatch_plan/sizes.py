"""What the reference and the fake kernel of ``dispatch_plan`` both know without looking at values."""

import torch
from torch import Tensor

MOST_EXPERTS = 2**24
MOST_ALIGNED = 2**20
MOST_ROWS = 2**48


def check_plan_arguments(index_TK: Tensor, num_experts: int, alignment: int, capacity: int, fill: bool) -> None:
    """Raises RuntimeError where the C++ operator does."""
    if index_TK.ndim != 2:
        raise RuntimeError(f"index must have 2 dimensions, got {index_TK.ndim}.")
    if index_TK.dtype not in (torch.int32, torch.int64):
        raise RuntimeError(f"index must be int32 or int64, got {index_TK.dtype}.")
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise RuntimeError(f"num_experts={num_experts} must be from 1 to {MOST_EXPERTS}.")
    if not 1 <= alignment <= MOST_ALIGNED:
        raise RuntimeError(f"alignment={alignment} must be from 1 to {MOST_ALIGNED}.")
    if capacity < -1:
        raise RuntimeError(f"capacity={capacity} must be at least 0, or -1 for none.")
    if fill and capacity < 0:
        raise RuntimeError("To fill every expert's rows takes a capacity.")
    if fill and capacity > MOST_ROWS // num_experts:
        raise RuntimeError(f"capacity={capacity} for each of {num_experts} experts are too many rows.")


def most_rows(num_slots: int, num_experts: int, alignment: int, capacity: int, fill: bool) -> int:
    """Rows that hold every outcome: what a compiled program allocates before it knows the counts."""
    if fill:
        return num_experts * capacity
    if alignment == 1:
        return num_slots
    used_experts: int = torch.sym_min(num_experts, num_slots)
    return num_slots + used_experts * (alignment - 1)
