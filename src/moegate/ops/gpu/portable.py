"""The scores of ``moegate.ops.portable`` in Triton: the same single roundings in the same order, so the same bits.

Kernels that use them are launched with ``enable_fp_fusion=False``: a multiplication and an addition that a compiler
fuses would be rounded once instead of twice. Divisions and roots are the correctly rounded ones.
"""

import triton
import triton.language as tl

from moegate.ops.portable import reference

_LOG2_E = tl.constexpr(reference._LOG2_E)
_LN2_HIGH = tl.constexpr(reference._LN2_HIGH)
_LN2_LOW = tl.constexpr(reference._LN2_LOW)
_GRID = tl.constexpr(reference._GRID)
_TAIL = tl.constexpr(reference._TAIL)
_EXP = tl.constexpr(reference._EXP)
_LOG1P = tl.constexpr(reference._LOG1P)
# Adding and taking away this number rounds a float32 below 2^22 to the nearest integer, ties to even.
_ROUND = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def portable_exp(x):
    """``exp(x)`` in float32; NaN stays NaN."""
    x = tl.where(x != x, x, tl.minimum(tl.maximum(x, -104.0), 89.0))
    n = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    polynomial = tl.full(r.shape, _EXP[0], tl.float32)
    for power in tl.static_range(1, 6):
        polynomial = polynomial * r + _EXP[power]
    mantissa = (polynomial * (r * r) + r) + 1.0
    # A NaN has no exponent; any will do.
    exponent = tl.where(x != x, 0.0, n).to(tl.int32)
    half = exponent >> 1
    return (mantissa * _power_of_two(half)) * _power_of_two(exponent - half)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def portable_log1p(u):
    """``log(1 + u)`` in float32 for ``0 <= u <= 1``."""
    s = tl.div_rn(u, 2.0 + u)
    square = s * s
    polynomial = tl.full(s.shape, _LOG1P[0], tl.float32)
    for power in tl.static_range(1, 5):
        polynomial = polynomial * square + _LOG1P[power]
    return (2.0 * s) * polynomial


@triton.jit
def portable_sigmoid(z):
    """``1 / (1 + exp(-z))`` in float32."""
    small = portable_exp(-tl.abs(z))
    return tl.div_rn(tl.where(z >= 0, tl.full(z.shape, 1.0, tl.float32), small), 1.0 + small)


@triton.jit
def portable_sqrt_softplus(z):
    """``sqrt(log(1 + exp(z)))`` in float32."""
    above = tl.where(z != z, z, tl.maximum(z, 0.0))
    softplus = above + portable_log1p(portable_exp(-tl.abs(z)))
    return tl.where(z < _TAIL, portable_exp(z * 0.5), tl.sqrt_rn(softplus))


@triton.jit
def portable_softmax(z, real):
    """Softmax in float32 along the last axis, over the lanes where ``real`` is True."""
    greatest = tl.max(tl.where(real, z, -float("inf")), axis=1)
    spoiled = tl.max(tl.where(real & (z != z), 1, 0), axis=1) > 0
    greatest = tl.where(spoiled, float("nan"), greatest)
    shifted = tl.where(real, portable_exp(z - greatest[:, None]), 0.0)
    on_grid = (shifted.to(tl.float64) + _GRID) - _GRID
    return tl.div_rn(shifted, tl.broadcast_to(tl.sum(on_grid, axis=1).to(tl.float32)[:, None], shifted.shape))
