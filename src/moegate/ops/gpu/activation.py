"""The activations of the experts in Triton, in float32."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import rounded

_ROOT_HALF = tl.constexpr(0.7071067811865476)
_NORMAL_DENSITY = tl.constexpr(0.3989422804014327)


@triton.jit
def value_and_slope(z, FUNCTION: tl.constexpr):
    """A function of float32 values, and its derivative."""
    if FUNCTION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        return z * sigmoid, sigmoid * (1.0 + z * (1.0 - sigmoid))
    if FUNCTION == "gelu":
        below = 0.5 * (1.0 + tl.erf(z * _ROOT_HALF))
        return z * below, below + z * tl.exp(-0.5 * z * z) * _NORMAL_DENSITY
    positive = tl.where(z != z, z, tl.maximum(z, 0.0))
    if FUNCTION == "relu2":
        return positive * positive, 2.0 * positive
    return positive, tl.where(z <= 0, 0.0, 1.0)


@triton.jit
def activated(gate, up, FUNCTION: tl.constexpr, GATED: tl.constexpr, ELEMENT: tl.constexpr):
    """``act(gate) · up``, or ``act(gate)``, of values of type ``ELEMENT``, rounded as PyTorch's operations would."""
    value, _ = value_and_slope(gate.to(tl.float32), FUNCTION)
    if GATED:
        value = rounded(value, ELEMENT).to(tl.float32) * up.to(tl.float32)
    return rounded(value, ELEMENT)
