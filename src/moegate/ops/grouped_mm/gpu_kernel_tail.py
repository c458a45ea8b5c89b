"""Zeros for the rows that no group owns."""

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
