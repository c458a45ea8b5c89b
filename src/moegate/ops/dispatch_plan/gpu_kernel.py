"""The plan in Triton: a stable counting sort of the slots in three steps, none of which waits for the host.

``count`` numbers the slots of each block among those of the same expert before them, and counts them; ``accumulate``
turns the blocks' counts into how many slots of each expert lie in earlier blocks; ``place`` writes both ways between
slots and rows. Nothing depends on the order in which programs run.
"""

import triton
import triton.language as tl


@triton.jit
def expert_of(index_ptr, slot_n, num_slots, num_experts, stride_t, stride_k, K: tl.constexpr):
    """The expert of each slot; ``num_experts`` for an empty one."""
    token_n, k_n = slot_n // K, slot_n % K
    place_n = token_n.to(tl.int64) * stride_t + k_n.to(tl.int64) * stride_k
    expert_n = tl.load(index_ptr + place_n, mask=slot_n < num_slots, other=-1)
    return tl.where((expert_n < 0) | (expert_n >= num_experts), num_experts, expert_n).to(tl.int32)


@triton.jit
def count_kernel(
    index_ptr, rank_ptr, counts_ptr, num_slots, num_experts, stride_t, stride_k,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """``rank [N]``: slots of the same expert before it in its block; ``counts [B, E]``: slots of each expert."""
    block = tl.program_id(0)
    lane_n = tl.arange(0, BLOCK_N)
    slot_n = block * BLOCK_N + lane_n
    expert_n = expert_of(index_ptr, slot_n, num_slots, num_experts, stride_t, stride_k, K)
    before_nn = (expert_n[:, None] == expert_n[None, :]) & (lane_n[None, :] < lane_n[:, None])
    tl.store(rank_ptr + slot_n, tl.sum(before_nn.to(tl.int32), axis=1), mask=slot_n < num_slots)
    bin_e = tl.arange(0, BLOCK_E)
    counts_e = tl.histogram(expert_n, BLOCK_E)
    tl.store(counts_ptr + block.to(tl.int64) * num_experts + bin_e, counts_e, mask=bin_e < num_experts)


@triton.jit
def accumulate_kernel(counts_ptr, totals_ptr, num_blocks, num_experts, BLOCK_B: tl.constexpr, BLOCK_E: tl.constexpr):
    """``counts [B, E]`` becomes the slots of each expert in earlier blocks; ``totals [E]`` those in all blocks."""
    expert_e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    row_b = tl.arange(0, BLOCK_B)
    total_e = tl.full((BLOCK_E,), 0, tl.int32)
    for start in range(0, num_blocks, BLOCK_B):
        here_be = ((start + row_b) < num_blocks)[:, None] & (expert_e < num_experts)[None, :]
        place_be = counts_ptr + (start + row_b).to(tl.int64)[:, None] * num_experts + expert_e[None, :]
        counts_be = tl.load(place_be, mask=here_be, other=0)
        tl.store(place_be, total_e[None, :] + tl.cumsum(counts_be, axis=0) - counts_be, mask=here_be)
        total_e += tl.sum(counts_be, axis=0)
    tl.store(totals_ptr + expert_e, total_e, mask=expert_e < num_experts)


@triton.jit
def place_kernel(
    index_ptr, rank_ptr, before_ptr, totals_ptr, counts_ptr, offsets_ptr, slot_ptr, inverse_ptr,
    num_slots, num_experts, stride_t, stride_k, alignment, capacity,
    K: tl.constexpr, FILL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Rows and slots, each at the other's place; the first program writes counts and offsets too."""
    block = tl.program_id(0)
    bin_e = tl.arange(0, BLOCK_E)
    assigned_e = tl.load(totals_ptr + bin_e, mask=bin_e < num_experts, other=0).to(tl.int64)
    kept_e = assigned_e
    if capacity >= 0:
        kept_e = tl.minimum(assigned_e, capacity)
    rows_e = (kept_e + (alignment - 1)) // alignment * alignment
    if FILL:
        rows_e = tl.where(bin_e < num_experts, capacity, tl.zeros_like(kept_e))
    ends_e = tl.cumsum(rows_e, axis=0)
    if block == 0:
        tl.store(counts_ptr + bin_e, kept_e, mask=bin_e < num_experts)
        tl.store(offsets_ptr + bin_e, ends_e, mask=bin_e < num_experts)
    slot_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    here_n = slot_n < num_slots
    expert_n = expert_of(index_ptr, slot_n, num_slots, num_experts, stride_t, stride_k, K)
    used_n = here_n & (expert_n < num_experts)
    earlier_n = tl.load(before_ptr + block.to(tl.int64) * num_experts + expert_n, mask=used_n, other=0)
    rank_n = (tl.load(rank_ptr + slot_n, mask=here_n, other=0) + earlier_n).to(tl.int64)
    # An empty slot names no bin; it is not used.
    safe_n = tl.where(used_n, expert_n, 0)
    used_n = used_n & (rank_n < tl.gather(kept_e, safe_n, 0))
    row_n = tl.where(used_n, tl.gather(ends_e - rows_e, safe_n, 0) + rank_n, -1)
    tl.store(inverse_ptr + slot_n, row_n, mask=here_n)
    tl.store(slot_ptr + row_n, slot_n.to(tl.int64), mask=used_n)
