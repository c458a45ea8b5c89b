"""The plan for more experts than a program can count: PyTorch's stable sort, with sizes that no value decides."""

import torch
from torch import Tensor


def plan_by_sorting(
    index_TK: Tensor, num_experts: int, alignment: int, capacity: int, fill: bool, num_rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``plan_by_counting`` gives."""
    expert_N = index_TK.reshape(-1)
    is_expert_N = (expert_N >= 0) & (expert_N < num_experts)
    # Empty slots sort behind the last expert.
    key_N, slot_N = torch.sort(torch.where(is_expert_N, expert_N, num_experts).to(torch.int32), stable=True)
    ends_E = torch.searchsorted(key_N, torch.arange(num_experts, device=key_N.device, dtype=torch.int32), right=True)
    assigned_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    counts_E = assigned_E if capacity < 0 else assigned_E.clamp(max=capacity)
    rows_E = torch.full_like(counts_E, capacity) if fill else -(-counts_E // alignment) * alignment
    offsets_E = rows_E.cumsum(0)
    expert_N = key_N.long().clamp(max=num_experts - 1)
    rank_N = torch.arange(key_N.shape[0], device=key_N.device) - (ends_E - assigned_E)[expert_N]
    kept_N = (key_N < num_experts) & (rank_N < counts_E[expert_N])
    row_N = (offsets_E - rows_E)[expert_N] + rank_N
    # What has no row goes to one behind the last, which is cut off.
    slot_R = torch.full((num_rows + 1,), -1, device=key_N.device, dtype=torch.int64)
    slot_R = slot_R.scatter_(0, torch.where(kept_N, row_N, num_rows), slot_N)[:num_rows]
    inverse_N = torch.empty_like(slot_N).scatter_(0, slot_N, torch.where(kept_N, row_N, -1))
    return counts_E, offsets_E, slot_R, inverse_N.view(index_TK.shape)
