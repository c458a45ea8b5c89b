"""The total order of selection as integers, and what is chosen by it, in Triton.

A key is one int64: the value in its high half, so that greater values have greater keys, and the complement of the
index in its low half, so that of equal values the lower index is greater. One maximum then answers both questions.
"""

import triton
import triton.language as tl

EXCLUDED = tl.constexpr(-(2**31))
"""The high half of a key that ranks behind every value, NaN included."""
LOWEST = tl.constexpr(-(2**63))
"""A key behind all others."""
_NAN_RANK = tl.constexpr(-(2**31) + 1)
_LOW_HALF = tl.constexpr(0xFFFFFFFF)


@triton.jit
def ordered(x):
    """float32 values as int32 of the same order: ``-0.0`` like ``+0.0``, NaN behind ``-inf``."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x != x, _NAN_RANK, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def keys_of(rank, index):
    """The keys of int32 ranks and of indices from 0."""
    return (rank.to(tl.int64) << 32) | (index.to(tl.int64) ^ _LOW_HALF)


@triton.jit
def index_of(key):
    """The index in a key."""
    return ((key & _LOW_HALF) ^ _LOW_HALF).to(tl.int32)


@triton.jit
def places_in_order(rank, place, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The places of the ``K`` greatest ranks of each row, in ``BLOCK_K`` lanes; what lies behind them is arbitrary.

    At least ``K`` of the ranks must be above ``EXCLUDED``.
    """
    if K > 32:
        return index_of(tl.topk(keys_of(rank, place), BLOCK_K))
    slot = tl.arange(0, BLOCK_K)[None, :]
    found = tl.full((rank.shape[0], BLOCK_K), 0, tl.int32)
    for k in range(K):
        # Two maxima of 32 bits, each of which may be one instruction, rather than one of 64, which is none.
        best = tl.max(rank, axis=1)[:, None]
        first = tl.min(tl.where(rank == best, place, rank.shape[1]), axis=1)[:, None]
        found = tl.where(slot == k, first, found)
        rank = tl.where(place == first, EXCLUDED, rank)
    return found
