"""Dispatch and combine as models write them in plain PyTorch: a stable sort, a count, gathers and scatters."""

from typing import NamedTuple

import torch
from torch import Tensor


class SortedSlots(NamedTuple):
    """What carries tokens to experts and back: ``counts [E]``, ``offsets [E]``, ``slot [R]``, ``inverse [R]``."""

    counts: Tensor
    offsets: Tensor
    slot: Tensor
    inverse: Tensor


def plan(index_TK: Tensor, num_experts: int) -> SortedSlots:
    """Sort, count, cumulate, invert; counting waits for a GPU.

    Example:
        >>> found = plan(torch.tensor([[1], [0], [1]]), 2)
        >>> found.slot.tolist(), found.inverse.tolist(), found.counts.tolist()
        ([1, 0, 2], [1, 0, 2], [1, 2])
    """
    expert_N = index_TK.reshape(-1)
    slot_R = torch.sort(expert_N, stable=True).indices
    counts_E = torch.bincount(expert_N, minlength=num_experts)
    inverse_R = torch.empty_like(slot_R)
    inverse_R[slot_R] = torch.arange(slot_R.shape[0], device=slot_R.device)
    return SortedSlots(counts_E, counts_E.cumsum(0), slot_R, inverse_R)


def plan_without_waiting(index_TK: Tensor, num_experts: int) -> SortedSlots:
    """The same with a histogram of known size, as transformers counts on GPUs.

    Example:
        >>> plan_without_waiting(torch.tensor([[1], [0], [1]]), 2).counts.tolist()
        [1, 2]
    """
    expert_N = index_TK.reshape(-1)
    slot_R = torch.sort(expert_N, stable=True).indices
    counts_E = torch.histc(expert_N.float(), bins=num_experts, min=0, max=num_experts - 1).long()
    number_R = torch.arange(slot_R.shape[0], device=slot_R.device)
    return SortedSlots(counts_E, counts_E.cumsum(0), slot_R, torch.empty_like(slot_R).scatter_(0, slot_R, number_R))


def permute(hidden_TD: Tensor, slot_R: Tensor, top_k: int) -> Tensor:
    """The rows in the order of the experts."""
    return hidden_TD[torch.div(slot_R, top_k, rounding_mode="floor")]


def combine_by_index_add(rows_RD: Tensor, slot_R: Tensor, weights_TK: Tensor) -> Tensor:
    """Weighted rows added to their tokens."""
    num_tokens, top_k = weights_TK.shape
    weighted_RD = rows_RD * weights_TK.reshape(-1)[slot_R, None]
    out_TD = weighted_RD.new_zeros(num_tokens, rows_RD.shape[1], dtype=torch.float32)
    out_TD.index_add_(0, torch.div(slot_R, top_k, rounding_mode="floor"), weighted_RD)
    return out_TD.to(rows_RD.dtype)


def combine_by_inverse(rows_RD: Tensor, inverse_R: Tensor, weights_TK: Tensor) -> Tensor:
    """Weighted rows brought back to the order of the slots, then summed over them (as transformers does)."""
    slots_TKD = rows_RD[inverse_R].view(*weights_TK.shape, rows_RD.shape[1])
    return (slots_TKD * weights_TK[..., None]).sum(dim=1).to(rows_RD.dtype)
