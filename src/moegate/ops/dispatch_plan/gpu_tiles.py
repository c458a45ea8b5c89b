"""How the plan is divided among the programs of a GPU: the one place where its sizes are chosen."""

from math import isqrt
from typing import NamedTuple

from moegate.ops.gpu.sizes import power_of_two

MOST_BINS = 4096
"""Experts that a program counts by itself; beyond, the plan is sorted."""
SLOTS_OF_ONE_PROGRAM = 1024
"""Slots that one program plans sooner than a second launch would start."""
NARROW = 2**31
"""Fewer slots and rows than these are counted in int32: of int64 a GPU needs twice the instructions."""
PROGRAMS = 256
"""Programs that place slots: each of them adds up the groups first."""


class Tiles(NamedTuple):
    """Blocks of slots in groups, and into how many parts a group is divided when its slots are placed.

    Attributes:
        block_n: slots in a block, a multiple of 32.
        block_e: bins.
        block_g: groups that are added at a time.
        group_size: blocks in a group.
        num_blocks: all of them.
        num_parts: programs for each group.
        count_warps: warps of a program that counts, or that does both steps.
        place_warps: of one that places.
    """

    block_n: int
    block_e: int
    block_g: int
    group_size: int
    num_blocks: int
    num_parts: int
    count_warps: int
    place_warps: int

    @property
    def num_groups(self) -> int:
        return max(1, -(-self.num_blocks // self.group_size))


def plan_tiles(num_slots: int, num_experts: int) -> Tiles:
    """The sizes for a plan.

    A group is counted block after block by one program, and every program that places slots adds up all groups: more
    groups make the first step shorter and the second longer. A thread that counts holds one slot: 32 of them make a
    word in one instruction.
    """
    block_e = max(32, power_of_two(num_experts))
    if num_slots <= SLOTS_OF_ONE_PROGRAM:
        block_n = min(256, max(32, power_of_two(num_slots)))
        num_blocks, num_warps = -(-num_slots // block_n), 4 if max(block_n, block_e) <= 128 else 8
        return Tiles(block_n, block_e, 1, max(1, num_blocks), num_blocks, 1, num_warps, num_warps)
    block_n = 512
    num_blocks = -(-num_slots // block_n)
    group_size = max(1, isqrt(num_blocks * num_experts // 2048), -(-num_blocks // 128))
    num_groups = -(-num_blocks // group_size)
    block_g = min(power_of_two(num_groups), max(1, 8192 // block_e))
    num_parts = min(group_size, max(1, PROGRAMS // num_groups))
    return Tiles(block_n, block_e, block_g, group_size, num_blocks, num_parts, 16, 16)
