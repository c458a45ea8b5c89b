"""The plan on devices that Triton serves: which way it takes, allocation, launches."""

import torch
from torch import Tensor

from moegate.ops.dispatch_plan import gpu_tiles
from moegate.ops.dispatch_plan.gpu_kernel import count_kernel, place_kernel, plan_kernel
from moegate.ops.dispatch_plan.gpu_sort import plan_by_sorting
from moegate.ops.dispatch_plan.gpu_tiles import MOST_BINS, Tiles, plan_tiles
from moegate.ops.dispatch_plan.sizes import check_plan_arguments, most_rows

Plan = tuple[Tensor, Tensor, Tensor, Tensor]


def dispatch_plan(index_TK: Tensor, num_experts: int, alignment: int, capacity: int, fill: bool, trim: bool) -> Plan:
    """``moegate::dispatch_plan``; only ``trim`` waits for the device."""
    check_plan_arguments(index_TK, num_experts, alignment, capacity, fill)
    num_rows = most_rows(index_TK.numel(), num_experts, alignment, capacity, fill)
    if num_experts > MOST_BINS:
        plan = plan_by_sorting(index_TK, num_experts, alignment, capacity, fill, num_rows)
    else:
        tiles = plan_tiles(index_TK.numel(), num_experts)
        plan = plan_by_counting(index_TK, num_experts, alignment, capacity, fill, num_rows, tiles)
    if trim and not fill:
        counts_E, offsets_E, slot_R, inverse_TK = plan
        plan = counts_E, offsets_E, slot_R[: int(offsets_E[-1])], inverse_TK
    return plan


def plan_by_counting(  # noqa: PLR0917 - the schema of the operator, and how it is served
    index_TK: Tensor, num_experts: int, alignment: int, capacity: int, fill: bool, num_rows: int, tiles: Tiles
) -> Plan:
    """One launch where there is one group, else two."""
    num_slots = index_TK.numel()
    counts_E = index_TK.new_empty(num_experts, dtype=torch.int64)
    offsets_E = torch.empty_like(counts_E)
    slot_R = counts_E.new_empty(num_rows)
    inverse_TK = counts_E.new_empty(index_TK.shape)
    count_type = torch.int32 if max(num_slots, num_rows) < gpu_tiles.NARROW else torch.int64
    digits = num_experts.bit_length()
    words = counts_E.new_empty(tiles.num_blocks * tiles.block_n // 2, dtype=torch.int32)
    before_BE = counts_E.new_empty(tiles.num_blocks, num_experts, dtype=count_type)
    totals_GE = counts_E.new_empty(tiles.num_groups, num_experts, dtype=count_type)
    drops = 0 <= capacity < num_slots
    if not fill:
        capacity = capacity if drops else num_slots
    # Contiguous, the indices are one row of slots.
    layout = (1, 1, 0) if index_TK.is_contiguous() else (index_TK.shape[1], *index_TK.stride())
    problem = (num_slots, num_experts, *layout)
    sizes = {"DIGITS": digits, "BLOCK_N": tiles.block_n, "BLOCK_E": tiles.block_e, "enable_fp_fusion": False}
    outputs = counts_E, offsets_E, slot_R, inverse_TK
    if tiles.num_groups == 1:
        plan_kernel[(1,)](
            index_TK, words, before_BE, totals_GE, *outputs, num_rows, tiles.num_blocks, *problem,
            alignment, capacity, FILL=fill, DROPS=drops, **sizes, num_warps=tiles.count_warps,
        )  # fmt: skip
        return outputs
    blocks = tiles.group_size, tiles.num_groups, tiles.num_blocks
    count_kernel[(tiles.num_groups,)](
        index_TK, words, before_BE, totals_GE, slot_R, num_rows, *blocks, *problem, **sizes, num_warps=tiles.count_warps
    )
    place_kernel[tiles.num_groups, tiles.num_parts](
        index_TK, words, before_BE, totals_GE, *outputs, *blocks, *problem,
        alignment, capacity, FILL=fill, DROPS=drops, BLOCK_G=tiles.block_g, **sizes, num_warps=tiles.place_warps,
    )  # fmt: skip
    return outputs
