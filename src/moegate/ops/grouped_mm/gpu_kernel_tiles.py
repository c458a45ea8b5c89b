"""Which rows each program of a grouped product computes, found once on the device for all of them."""

import triton
import triton.language as tl


@triton.jit
def tiles_kernel(
    offsets_ptr, tiles_ptr, num_groups, num_rows, most_tiles,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """``tiles [3, most_tiles]``: group, first row and end of each tile of up to ``BLOCK_R`` rows of one group.

    The rows behind the last group are one more group, ``num_groups``, which has no matrix; the group of a tile that
    nothing is left for is -1. Offsets are cut to the rows and a group that ends before it starts has no rows, so
    whatever they say, a tile lies within the rows.
    """
    tile_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    group_n = tl.zeros((BLOCK_N,), tl.int64)
    before_n = tl.zeros((BLOCK_N,), tl.int64)
    total = tl.zeros((), tl.int64)
    for begin in range(0, num_groups + 1, BLOCK_E):
        group_e = begin + tl.arange(0, BLOCK_E)
        start_e, end_e = _rows_of(offsets_ptr, group_e, num_groups, num_rows)
        last_e = total + tl.cumsum(tl.where(end_e > start_e, (end_e - start_e + (BLOCK_R - 1)) // BLOCK_R, 0), axis=0)
        behind_ne = (last_e[None, :] <= tile_n[:, None]) & (group_e <= num_groups)[None, :]
        group_n += tl.sum(behind_ne.to(tl.int32), axis=1)
        before_n = tl.maximum(before_n, tl.max(tl.where(behind_ne, last_e[None, :], 0), axis=1))
        total = tl.max(last_e, axis=0)
    start_n, end_n = _rows_of(offsets_ptr, group_n, num_groups, num_rows)
    real_n = tile_n < most_tiles
    tl.store(tiles_ptr + tile_n, tl.where(group_n <= num_groups, group_n, -1), mask=real_n)
    tl.store(tiles_ptr + most_tiles + tile_n, start_n + (tile_n - before_n) * BLOCK_R, mask=real_n)
    tl.store(tiles_ptr + 2 * most_tiles + tile_n, end_n, mask=real_n)


@triton.jit
def _rows_of(offsets_ptr, group, num_groups, num_rows):
    """The first row of groups and their end; both 0 beyond the last."""
    end = tl.load(offsets_ptr + group, mask=group < num_groups, other=0)
    end = tl.where(group == num_groups, num_rows, end)
    start = tl.load(offsets_ptr + group - 1, mask=(group > 0) & (group <= num_groups), other=0)
    return tl.minimum(tl.maximum(start, 0), num_rows), tl.minimum(tl.maximum(end, 0), num_rows)
