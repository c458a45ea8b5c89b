"""The reference: a stable sort of the slots by expert."""

import torch
from torch import Tensor

from moegate.ops.dispatch_plan.sizes import check_plan_arguments, most_rows


def dispatch_plan_reference(
    index_TK: Tensor, num_experts: int, alignment: int, capacity: int, fill: bool, trim: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_plan_arguments(index_TK, num_experts, alignment, capacity, fill)
    expert_N = index_TK.reshape(-1).long()
    if bool(((expert_N < -1) | (expert_N >= num_experts)).any()):
        raise RuntimeError(f"index holds a number below -1 or above {num_experts - 1}: an empty slot is -1.")
    # Empty slots sort behind the last expert.
    key_N = torch.where(expert_N < 0, num_experts, expert_N)
    assigned_E = torch.zeros(num_experts + 1, dtype=torch.int64, device=key_N.device)
    assigned_E = assigned_E.scatter_add_(0, key_N, torch.ones_like(key_N))[:num_experts]
    counts_E = assigned_E if capacity < 0 else assigned_E.clamp(max=capacity)
    rows_E = torch.full_like(counts_E, capacity) if fill else -(-counts_E // alignment) * alignment
    offsets_E = rows_E.cumsum(0)
    slot_A = key_N.argsort(stable=True)[: int(assigned_E.sum())]
    expert_A = key_N[slot_A]
    rank_A = torch.arange(slot_A.shape[0], device=key_N.device) - (assigned_E.cumsum(0) - assigned_E)[expert_A]
    kept_A = rank_A < counts_E[expert_A]
    slot_A = slot_A[kept_A]
    row_A = ((offsets_E - rows_E)[expert_A] + rank_A)[kept_A]
    num_rows = int(offsets_E[-1]) if trim else most_rows(key_N.shape[0], num_experts, alignment, capacity, fill)
    slot_R = torch.full((num_rows,), -1, device=key_N.device).index_copy_(0, row_A, slot_A)
    inverse_N = torch.full_like(key_N, -1).index_copy_(0, slot_A, row_A)
    return counts_E, offsets_E, slot_R, inverse_N.view(index_TK.shape)
