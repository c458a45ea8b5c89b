"""The plan on devices that Triton serves: sizes, allocation, launches."""

import torch
import triton
from torch import Tensor

from moegate.ops.dispatch_plan.gpu_kernel import accumulate_kernel, count_kernel, place_kernel
from moegate.ops.dispatch_plan.reference import dispatch_plan_reference
from moegate.ops.dispatch_plan.sizes import check_plan_arguments, most_rows

MOST_EXPERTS_OF_A_BLOCK = 4096
BLOCK_N = 128


def dispatch_plan(index: Tensor, E: int, alignment: int, capacity: int, fill: bool, trim: bool):
    check_plan_arguments(index, E, alignment, capacity, fill)
    if E + 1 > MOST_EXPERTS_OF_A_BLOCK:
        return dispatch_plan_reference(index, E, alignment, capacity, fill, trim)
    N = index.numel()
    K = max(1, index.shape[1])
    dev = index.device
    num_rows = most_rows(N, E, alignment, capacity, fill)
    counts = torch.empty(E, dtype=torch.int64, device=dev)
    offsets = torch.empty_like(counts)
    slot = torch.full((num_rows,), -1, dtype=torch.int64, device=dev)
    inverse = torch.empty(index.shape, dtype=torch.int64, device=dev)
    blocks = max(1, triton.cdiv(N, BLOCK_N))
    block_e = triton.next_power_of_2(E + 1)
    rank = torch.empty(N, dtype=torch.int32, device=dev)
    before = torch.empty(blocks, E, dtype=torch.int32, device=dev)
    totals = torch.empty(E, dtype=torch.int32, device=dev)
    st = index.stride()
    count_kernel[(blocks,)](index, rank, before, N, E, *st, K=K, BLOCK_N=BLOCK_N, BLOCK_E=block_e)
    accumulate_kernel[(triton.cdiv(E, 32),)](before, totals, blocks, E, BLOCK_B=128, BLOCK_E=32)
    place_kernel[(blocks,)](
        index,
        rank,
        before,
        totals,
        counts,
        offsets,
        slot,
        inverse,
        N,
        E,
        *st,
        alignment,
        capacity,
        K=K,
        FILL=fill,
        BLOCK_N=BLOCK_N,
        BLOCK_E=block_e,
    )
    if trim and not fill:
        slot = slot[: int(offsets[-1])]
    return counts, offsets, slot, inverse
