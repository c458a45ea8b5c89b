"""The ends of groups as PyTorch's grouped products take them, and such that these stay within the rows."""

import triton
import triton.language as tl


@triton.jit
def _greater(left, right):
    return tl.maximum(left, right)


@triton.jit
def ends_kernel(offsets_ptr, ends_ptr, num_groups, num_rows, BLOCK_E: tl.constexpr):
    """``ends [E]`` int32: the offsets, cut to the rows, and where one is below another before it, that other."""
    group_e = tl.arange(0, BLOCK_E)
    end_e = tl.load(offsets_ptr + group_e, mask=group_e < num_groups, other=0)
    end_e = tl.minimum(tl.maximum(end_e, 0), num_rows).to(tl.int32)
    tl.store(ends_ptr + group_e, tl.associative_scan(end_e, 0, _greater), mask=group_e < num_groups)
