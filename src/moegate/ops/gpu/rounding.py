"""What the interpreter of Triton does otherwise than hardware.

It cuts float32 to bfloat16, loses bfloat16's subnormal numbers on the way back, and can't multiply matrices of it.
"""

import triton
import triton.language as tl
from triton import knobs

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """A float as ``DTYPE``, rounded to nearest, ties to even; NaN stays NaN."""
    if _INTERPRETED and tl.bfloat16 == DTYPE:
        x = x.to(tl.float32)
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(x != x, 0x7FC0, bits)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def widened(x, DTYPE: tl.constexpr):
    """A float as ``DTYPE``, which holds all that its own type does."""
    if _INTERPRETED and tl.bfloat16 == x.dtype:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def added_product(left, right, total, PRECISION: tl.constexpr):
    """``total + left @ right``, added in float32; float32 operands are shortened only by ``PRECISION="tf32"``."""
    if _INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    return tl.dot(left, right, total, input_precision=PRECISION)
