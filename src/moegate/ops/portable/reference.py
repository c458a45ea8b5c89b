"""Scores whose float32 bits are the same on every device: a fixed sequence of single roundings.

A selection that orders by scores plus a bias turns on the last bit of a score, and no two libraries agree on the last
bit of ``exp``. So the scores that a selection orders by are defined here, by additions, multiplications, divisions and
square roots alone, which IEEE 754 rounds in one way only. The kernels do the same operations in the same order, without
fused multiply-add. A score is within 3 ulp of the exact one (a softmax: of that of the rounded differences to the
maximum), about what the libraries reach. float64 uses PyTorch's own functions. No gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_LOG2_E = 1.44269504088896341
# ln 2 in two parts; the first has so few bits that its products with an exponent are exact.
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
# exp(r) = 1 + r + r² · P(r) for |r| <= ln(2)/2, from the highest power down (Cephes, expf).
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# log(1 + u) = 2 s · Q(s²) with s = u / (2 + u), for 0 <= u <= 1: Chebyshev interpolation, relative error 4e-9.
_LOG1P = (
    0.14078889156761287,
    0.13982578878397325,
    0.20012297614909472,
    0.3333316082070072,
    1.000000003840879,
)
# Adding and taking away this number rounds a double to a multiple of 2^-36. Sums of up to 65,536 such multiples in
# [0, 1] are exact in float64, so their order does not matter.
_GRID = 1.5 * 2.0**16
_TAIL = -40.0  # below it log(1 + exp(z)) is exp(z), whose root is exp(z / 2)


def portable_exp(x: Tensor) -> Tensor:
    """``exp(x)`` in float32.

    Example:
        >>> portable_exp(torch.tensor([0.0, -200.0, 100.0])).tolist()
        [1.0, 0.0, inf]
    """
    x = x.clamp(-104.0, 89.0)
    n = torch.round(x * _LOG2_E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    polynomial = torch.full_like(r, _EXP[0])
    for coefficient in _EXP[1:]:
        polynomial.mul_(r).add_(coefficient)
    mantissa = (polynomial * (r * r) + r) + 1.0
    # Two factors, so that a result below the normal range is rounded once.
    exponent = n.to(torch.int32)
    half = exponent >> 1
    return (mantissa * _power_of_two(half)) * _power_of_two(exponent - half)


def portable_log1p(u: Tensor) -> Tensor:
    """``log(1 + u)`` in float32 for ``0 <= u <= 1``.

    Example:
        >>> portable_log1p(torch.tensor([0.0, 1.0])).tolist()
        [0.0, 0.6931471824645996]
    """
    s = u / (2.0 + u)
    square = s * s
    polynomial = torch.full_like(s, _LOG1P[0])
    for coefficient in _LOG1P[1:]:
        polynomial.mul_(square).add_(coefficient)
    return (2.0 * s) * polynomial


def portable_sigmoid(logits_TE: Tensor) -> Tensor:
    """``1 / (1 + exp(-z))``.

    Example:
        >>> portable_sigmoid(torch.tensor([0.0, 200.0])).tolist()
        [0.5, 1.0]
    """
    if logits_TE.dtype == torch.float64:
        return torch.sigmoid(logits_TE)
    small_TE = portable_exp(-logits_TE.abs())
    return torch.where(logits_TE >= 0, 1.0, small_TE) / (1.0 + small_TE)


def portable_sqrt_softplus(logits_TE: Tensor) -> Tensor:
    """``sqrt(log(1 + exp(z)))``.

    Example:
        >>> portable_sqrt_softplus(torch.tensor([10000.0, -200.0])).tolist()
        [100.0, 3.783505853677006e-44]
    """
    if logits_TE.dtype == torch.float64:
        body_TE = (logits_TE.clamp(min=0) + (-logits_TE.abs()).exp().log1p()).sqrt()
        return torch.where(logits_TE < _TAIL, (logits_TE / 2).exp(), body_TE)
    softplus_TE = logits_TE.clamp(min=0.0) + portable_log1p(portable_exp(-logits_TE.abs()))
    return torch.where(logits_TE < _TAIL, portable_exp(logits_TE * 0.5), _square_root(softplus_TE))


def portable_softmax(logits_TE: Tensor) -> Tensor:
    """``exp(z - max) / Σ exp(z - max)``; a row with a NaN or ``+inf``, or of ``-inf`` alone, is NaN throughout.

    Example:
        >>> portable_softmax(torch.zeros(1, 4)).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    if logits_TE.dtype == torch.float64 or logits_TE.shape[-1] == 0:
        return logits_TE.softmax(dim=-1)
    shifted_TE = portable_exp(logits_TE - logits_TE.amax(dim=-1, keepdim=True))
    on_grid_TE = (shifted_TE.double() + _GRID) - _GRID
    return shifted_TE / on_grid_TE.sum(dim=-1, keepdim=True).float()


def _square_root(x: Tensor) -> Tensor:
    """The float32 square root, correctly rounded: PyTorch's own comes from a library that may miss the last bit."""
    return x.double().sqrt().float()


def _power_of_two(exponent: Tensor) -> Tensor:
    """``2 ** exponent`` in float32 for exponents of normal numbers, made of its bits."""
    return ((exponent + 127) << 23).view(torch.float32)


PORTABLE_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": portable_softmax,
    "sigmoid": portable_sigmoid,
    "sqrt_softplus": portable_sqrt_softplus,
}
"""The scores that a selection may order by, each by its kind."""


def portable_scores_reference(logits_TE: Tensor, score: str) -> Tensor:
    """``PORTABLE_SCORES[score]`` of float32 or float64 logits.

    Example:
        >>> portable_scores_reference(torch.zeros(1, 2), "softmax").tolist()
        [[0.5, 0.5]]
    """
    return PORTABLE_SCORES[score](logits_TE)
