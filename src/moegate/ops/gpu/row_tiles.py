"""Tiles for programs that move rows between tokens and experts: the one place where their sizes are chosen."""

from typing import NamedTuple

from moegate.ops.gpu.sizes import power_of_two

PROCESSORS = 128
"""About as many as a large GPU has: fewer programs leave some of it idle."""


class RowTile(NamedTuple):
    """What a program takes at a time.

    Attributes:
        block_t: tokens.
        block_d: columns.
        num_warps: warps, each thread of which loads 16 bytes of a row at once.
    """

    block_t: int
    block_d: int
    num_warps: int


def copying_tile(num_tokens: int, width: int, itemsize: int) -> RowTile:
    """For a program that takes a piece of some tokens' rows: four warps, or one where tokens are few."""
    lanes = 32 * 16 // itemsize
    columns = power_of_two(max(1, width))
    block_d = min(columns, 4 * lanes)
    if num_tokens * -(-width // block_d) < 2 * PROCESSORS:
        block_d = min(columns, lanes)
    tokens_of_a_warp = max(1, lanes // block_d)
    block_t = tokens_of_a_warp * (4 if block_d < lanes and num_tokens >= 4 * tokens_of_a_warp * PROCESSORS else 1)
    return RowTile(block_t, block_d, max(1, block_t * block_d // lanes))


def adding_tile(width: int, itemsize: int) -> RowTile:
    """For a program that goes over whole rows and adds up their products: the same for any number of tokens.

    The tile decides in what order products are added, and a token's result is not to depend on the tokens beside it.
    """
    lanes = 32 * 16 // itemsize
    block_d = min(power_of_two(max(1, width)), 4 * lanes)
    block_t = max(1, lanes // block_d)
    return RowTile(block_t, block_d, max(1, block_t * block_d // lanes))
