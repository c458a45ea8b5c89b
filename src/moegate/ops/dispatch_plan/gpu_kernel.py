"""The plan in Triton: a stable counting sort of the slots, in one launch where they are few, else in two.

Slots are taken in blocks of ``BLOCK_N``, blocks in groups. ``count_kernel`` writes, for each block, how many slots of
each expert lie in earlier blocks of its group, and for each group how many lie in it. ``place_kernel`` adds up the
groups, and finds the rank of a slot in its own block from bits: ``count_kernel`` leaves one word for each 32 slots and
each binary digit of their experts, and the slots of one's own expert are where all digits agree. That takes an
operation for each digit and 32 slots; to compare with each slot would take 32. Nothing depends on the order in which
programs run, and nothing waits for the host.
"""

import triton
import triton.language as tl


@triton.jit
def expert_of(index_ptr, slot_n, num_slots, num_experts, top_k, stride_t, stride_k):
    """The expert of each slot; -1 for an empty one, and for a number that is no expert's."""
    place_n = (slot_n // top_k).to(tl.int64) * stride_t + (slot_n % top_k).to(tl.int64) * stride_k
    expert_n = tl.load(index_ptr + place_n, mask=slot_n < num_slots, other=-1)
    return tl.where((expert_n >= 0) & (expert_n < num_experts), expert_n, -1).to(tl.int32)


@triton.jit
def set_bits(word):
    """How many bits of an int32 are 1; compilers know this form."""
    word = word.to(tl.uint32, bitcast=True)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def write_digits(expert_n, words_ptr, DIGITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """``words [16, BLOCK_N / 32]``: for each digit and each 32 slots a word, with a bit from each slot's expert."""
    ROWS: tl.constexpr = BLOCK_N // 32
    lane_l, row_s = tl.arange(0, 32), tl.arange(0, ROWS)
    expert_sl = tl.reshape(expert_n, (ROWS, 32))
    word_sl = tl.zeros((ROWS, 32), tl.int32)
    for digit in tl.static_range(DIGITS):
        word_s1 = tl.sum(((expert_sl >> digit) & 1) << lane_l[None, :], axis=1, keep_dims=True)
        word_sl = tl.where(lane_l[None, :] == digit, word_s1, word_sl)
    tl.store(words_ptr + lane_l[None, :] * ROWS + row_s[:, None], word_sl, mask=lane_l[None, :] < DIGITS)


@triton.jit
def rank_in_block(expert_n, words_ptr, DIGITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Slots of the same expert before each slot of a block."""
    ROWS: tl.constexpr = BLOCK_N // 32
    STEP: tl.constexpr = min(8, ROWS)
    rank_n = tl.zeros((BLOCK_N,), tl.int32)
    for first in range(0, ROWS, STEP):
        row_s = first + tl.arange(0, STEP)
        # A thread holds one slot, and some words.
        before_sn = tl.arange(0, BLOCK_N)[None, :] - 32 * row_s[:, None]
        same_sn = tl.where(before_sn >= 32, -1, (1 << tl.minimum(tl.maximum(before_sn, 0), 31)) - 1)
        for digit in tl.static_range(DIGITS):
            word_s = tl.load(words_ptr + digit * ROWS + row_s)
            same_sn &= word_s[:, None] ^ (((expert_n >> digit) & 1) - 1)[None, :]
        rank_n += tl.sum(set_bits(same_sn), axis=0)
    return rank_n


@triton.jit
def count_group(
    index_ptr, words_ptr, before_ptr, totals_ptr, group, group_size, num_blocks,
    num_slots, num_experts, top_k, stride_t, stride_k,
    DIGITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """``before [B, E]`` and ``words`` of the blocks of a group, and its row of ``totals [G, E]``."""
    bin_e, lane_n = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    first = group * group_size
    last = tl.minimum(first + group_size, num_blocks)
    seen_e = tl.zeros((BLOCK_E,), before_ptr.dtype.element_ty)
    slot_n = tl.cast(first, before_ptr.dtype.element_ty) * BLOCK_N + lane_n
    expert_n = expert_of(index_ptr, slot_n, num_slots, num_experts, top_k, stride_t, stride_k)
    for block in range(first, last):
        # The next block is on its way while this one is counted.
        slot_n += BLOCK_N
        next_n = expert_of(index_ptr, slot_n, num_slots, num_experts, top_k, stride_t, stride_k)
        write_digits(expert_n, words_ptr + tl.cast(block, tl.int64) * (BLOCK_N // 2), DIGITS, BLOCK_N)
        tl.store(before_ptr + tl.cast(block, tl.int64) * num_experts + bin_e, seen_e, mask=bin_e < num_experts)
        seen_e += tl.histogram(expert_n, BLOCK_E, mask=expert_n >= 0)
        expert_n = next_n
    tl.store(totals_ptr + tl.cast(group, tl.int64) * num_experts + bin_e, seen_e, mask=bin_e < num_experts)


@triton.jit
def clear_rows(slot_ptr, num_rows, part, num_parts, BLOCK: tl.constexpr):
    """No row has a slot, until one is placed there."""
    for start in range(tl.cast(part, tl.int64) * BLOCK, num_rows, num_parts * BLOCK):
        row_r = start + tl.arange(0, BLOCK)
        tl.store(slot_ptr + row_r, tl.full((BLOCK,), -1, tl.int64), mask=row_r < num_rows)


@triton.jit
def add_groups(totals_ptr, group, num_groups, num_experts, BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr):
    """The slots of each expert in all groups, and in those before this one."""
    bin_e = tl.arange(0, BLOCK_E)
    all_e = tl.zeros((BLOCK_E,), totals_ptr.dtype.element_ty)
    earlier_e = tl.zeros((BLOCK_E,), totals_ptr.dtype.element_ty)
    for start in range(0, num_groups, BLOCK_G):
        row_g = start + tl.arange(0, BLOCK_G)
        inside_ge = (row_g < num_groups)[:, None] & (bin_e < num_experts)[None, :]
        total_ge = tl.load(totals_ptr + row_g[:, None] * num_experts + bin_e[None, :], mask=inside_ge, other=0)
        all_e += tl.sum(total_ge, axis=0)
        earlier_e += tl.sum(tl.where((row_g < group)[:, None], total_ge, 0), axis=0)
    return all_e, earlier_e


@triton.jit
def place_group(
    index_ptr, words_ptr, before_ptr, totals_ptr, counts_ptr, offsets_ptr, slot_ptr, inverse_ptr,
    group, part, num_parts, group_size, num_groups, num_blocks,
    num_slots, num_experts, top_k, stride_t, stride_k, alignment, capacity,
    FILL: tl.constexpr, DROPS: tl.constexpr,
    DIGITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Rows and slots of every ``num_parts``-th block of a group, each at the other's place."""
    bin_e = tl.arange(0, BLOCK_E)
    assigned_e, earlier_e = add_groups(totals_ptr, group, num_groups, num_experts, BLOCK_G, BLOCK_E)
    kept_e = tl.minimum(assigned_e, capacity).to(assigned_e.dtype)
    if FILL:
        rows_e = tl.where(bin_e < num_experts, capacity, 0).to(assigned_e.dtype)
    else:
        rows_e = (kept_e + (alignment - 1)) // alignment * alignment
    ends_e = tl.cumsum(rows_e, axis=0)
    first_e = ends_e - rows_e
    if group + part == 0:
        tl.store(counts_ptr + bin_e, kept_e.to(tl.int64), mask=bin_e < num_experts)
        tl.store(offsets_ptr + bin_e, ends_e.to(tl.int64), mask=bin_e < num_experts)
    first = group * group_size
    for block in range(first + part, tl.minimum(first + group_size, num_blocks), num_parts):
        slot_n = tl.cast(block, before_ptr.dtype.element_ty) * BLOCK_N + tl.arange(0, BLOCK_N)
        expert_n = expert_of(index_ptr, slot_n, num_slots, num_experts, top_k, stride_t, stride_k)
        used_n, bin_n = expert_n >= 0, tl.maximum(expert_n, 0)
        before_n = tl.load(before_ptr + tl.cast(block, tl.int64) * num_experts + bin_n, mask=used_n, other=0)
        words_of_block = words_ptr + tl.cast(block, tl.int64) * (BLOCK_N // 2)
        before_n += rank_in_block(expert_n, words_of_block, DIGITS, BLOCK_N)
        row_n = before_n + tl.gather(first_e + earlier_e, bin_n, 0)
        if DROPS:
            used_n = used_n & (row_n < tl.gather(first_e + kept_e, bin_n, 0))
        tl.store(inverse_ptr + slot_n, tl.where(used_n, row_n, -1).to(tl.int64), mask=slot_n < num_slots)
        tl.store(slot_ptr + row_n, slot_n.to(tl.int64), mask=used_n)


@triton.jit
def count_kernel(
    index_ptr, words_ptr, before_ptr, totals_ptr, slot_ptr, num_rows, group_size, num_groups, num_blocks,
    num_slots, num_experts, top_k, stride_t, stride_k,
    DIGITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A program counts a group, and clears its share of the rows."""
    group = tl.program_id(0)
    clear_rows(slot_ptr, num_rows, group, num_groups, 1024)
    count_group(
        index_ptr, words_ptr, before_ptr, totals_ptr, group, group_size, num_blocks,
        num_slots, num_experts, top_k, stride_t, stride_k, DIGITS, BLOCK_N, BLOCK_E,
    )  # fmt: skip


@triton.jit
def place_kernel(
    index_ptr, words_ptr, before_ptr, totals_ptr, counts_ptr, offsets_ptr, slot_ptr, inverse_ptr,
    group_size, num_groups, num_blocks, num_slots, num_experts, top_k, stride_t, stride_k, alignment, capacity,
    FILL: tl.constexpr, DROPS: tl.constexpr,
    DIGITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """A program places a part of the blocks of a group; the first one writes counts and offsets too."""
    place_group(
        index_ptr, words_ptr, before_ptr, totals_ptr, counts_ptr, offsets_ptr, slot_ptr, inverse_ptr,
        tl.program_id(0), tl.program_id(1), tl.num_programs(1), group_size, num_groups, num_blocks,
        num_slots, num_experts, top_k, stride_t, stride_k, alignment, capacity,
        FILL, DROPS, DIGITS, BLOCK_N, BLOCK_E, BLOCK_G,
    )  # fmt: skip


@triton.jit
def plan_kernel(
    index_ptr, words_ptr, before_ptr, totals_ptr, counts_ptr, offsets_ptr, slot_ptr, inverse_ptr,
    num_rows, num_blocks, num_slots, num_experts, top_k, stride_t, stride_k, alignment, capacity,
    FILL: tl.constexpr, DROPS: tl.constexpr, DIGITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Both steps in one program: all blocks are one group."""
    clear_rows(slot_ptr, num_rows, 0, 1, 1024)
    count_group(
        index_ptr, words_ptr, before_ptr, totals_ptr, 0, num_blocks, num_blocks,
        num_slots, num_experts, top_k, stride_t, stride_k, DIGITS, BLOCK_N, BLOCK_E,
    )  # fmt: skip
    # What follows reads and overwrites what other threads of the program wrote.
    tl.debug_barrier()
    place_group(
        index_ptr, words_ptr, before_ptr, totals_ptr, counts_ptr, offsets_ptr, slot_ptr, inverse_ptr,
        0, 0, 1, num_blocks, 1, num_blocks,
        num_slots, num_experts, top_k, stride_t, stride_k, alignment, capacity,
        FILL, DROPS, DIGITS, BLOCK_N, BLOCK_E, 1,
    )  # fmt: skip
