"""Zeros where a product has nothing to add: rows that no group owns, and matrices of groups without rows."""

import triton
import triton.language as tl


@triton.jit
def zero_tail_kernel(
    rows_ptr, offsets_ptr, num_groups, num_rows, width, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr
):  # fmt: skip
    """Zeros from the last offset on, of which one program writes those among its ``BLOCK_R`` rows."""
    begin = tl.program_id(0).to(tl.int64) * BLOCK_R
    end = tl.minimum(begin + BLOCK_R, num_rows)
    first = tl.maximum(begin, tl.load(offsets_ptr + num_groups - 1))
    for row in range(first, end):
        for start in range(0, width, BLOCK_O):
            column_o = start + tl.arange(0, BLOCK_O)
            zero_o = tl.zeros((BLOCK_O,), rows_ptr.dtype.element_ty)
            tl.store(rows_ptr + row * width + column_o, zero_o, mask=column_o < width)


@triton.jit
def zero_empty_kernel(matrices_ptr, ends_ptr, size, BLOCK: tl.constexpr):
    """Zeros for a group's matrix of ``size`` elements if it has no rows; programs of a group share them."""
    group = tl.program_id(0)
    start = tl.load(ends_ptr + group - 1, mask=group > 0, other=0)
    if tl.load(ends_ptr + group) > start:
        return
    matrix_ptr = matrices_ptr + group.to(tl.int64) * size
    for begin in range(tl.program_id(1) * BLOCK, size, tl.num_programs(1) * BLOCK):
        place = begin + tl.arange(0, BLOCK)
        tl.store(matrix_ptr + place, tl.zeros((BLOCK,), matrices_ptr.dtype.element_ty), mask=place < size)
