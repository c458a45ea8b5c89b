"""The greatest values of a row by keys of 32 bits, and whether they are the right ones for sure, in Triton.

A rough key is the upper part of a value as an ordered integer with the complement of its position below it, so that one
maximum of 32 bits answers which value and where it stands. What the key cuts off, or an error of the value itself, may
hide the true order; so each choice comes with a doubt, and who is in doubt ranks again by
``moegate.ops.gpu.ranking``. NaN lies above ``+inf`` here, where one look at the first choice finds it.

A row is cut into columns, each a list of its three greatest keys and a bound on the rest; a round takes the greatest
head of all lists. That goes wrong where more than three of the chosen lie in one column, and the bound tells.
"""

import triton
import triton.language as tl

LOWEST_KEY = tl.constexpr(-(2**31))
"""A key behind those of all values."""
_PLUS_INF = tl.constexpr(0x7F800000)
_ORDERED_MINUS_INF = tl.constexpr(-0x7F800001)


@triton.constexpr_function
def _shift(bits):
    """What moves ``-inf`` to the first key but one, above ``LOWEST_KEY``, and NaN of either sign to the top."""
    return 2 ** (bits + 1) - 2**23


@triton.constexpr_function
def _minus_infinity(bits):
    return -(2**31) + 2**bits


@triton.constexpr_function
def log2(power_of_two):
    return power_of_two.bit_length() - 1


@triton.jit
def rough_keys(values, position, BITS: tl.constexpr):
    """The int32 keys of float32 values at positions below ``2 ** BITS``: of equal ones the first is the greatest."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # adding zero turns -0.0 into +0.0
    upper = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) & (-1 << BITS)
    return upper + ((position ^ ((1 << BITS) - 1)) + _shift(BITS))


@triton.jit
def position_of(key, BITS: tl.constexpr):
    """The position in a rough key."""
    return (key & ((1 << BITS) - 1)) ^ ((1 << BITS) - 1)


@triton.jit
def is_nan_key(key, BITS: tl.constexpr):
    """Whether a rough key is that of a NaN."""
    return key > _PLUS_INF + _shift(BITS) + (1 << BITS) - 1


@triton.jit
def least_value(key, BITS: tl.constexpr):
    """The least float32 that has such a key; ``-inf`` of one below all keys."""
    return _value((tl.maximum(key, _minus_infinity(BITS)) & (-1 << BITS)) - _shift(BITS))


@triton.jit
def greatest_value(key, BITS: tl.constexpr):
    """The greatest float32 that has such a key; ``-inf`` of one below all keys."""
    return _value((tl.maximum(key, _minus_infinity(BITS)) | ((1 << BITS) - 1)) - _shift(BITS))


@triton.jit
def _value(integer):
    # What is cut off may have been all that makes it infinite instead of NaN.
    integer = tl.minimum(tl.maximum(integer, _ORDERED_MINUS_INF), _PLUS_INF)
    return (integer ^ ((integer >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def surely_greater(least, greatest, ERROR: tl.constexpr):
    """Whether a value of at least ``least`` is above one of at most ``greatest``, each with its error."""
    if ERROR == 0:
        return least > greatest
    # Of infinities the differences would be NaN.
    return least - ERROR * (1.0 + tl.minimum(tl.abs(least), 1e38)) > greatest


@triton.jit
def greatest_of_columns(key_te, COLUMNS: tl.constexpr, NEIGHBOURS: tl.constexpr):
    """``[t, COLUMNS]`` each: the first, second and third key of each column, and the greatest of the rest.

    ``NEIGHBOURS`` lanes side by side belong to one column, as one thread holds them when it has loaded them at once.
    """
    T: tl.constexpr = key_te.shape[0]
    MEMBERS: tl.constexpr = key_te.shape[1] // COLUMNS
    BLOCKS: tl.constexpr = MEMBERS // NEIGHBOURS
    key_tbcn = tl.reshape(key_te, (T, BLOCKS, COLUMNS, NEIGHBOURS))
    first = tl.reshape(tl.permute(key_tbcn, (0, 2, 1, 3)), (T, COLUMNS, MEMBERS))
    second = tl.full(first.shape, LOWEST_KEY, tl.int32)
    third = second
    rest = second
    for step in tl.static_range(1, log2(MEMBERS) + 1):
        first, second, third, rest = _merged(first, second, third, rest, MEMBERS >> step)
    shape: tl.constexpr = (T, COLUMNS)
    return tl.reshape(first, shape), tl.reshape(second, shape), tl.reshape(third, shape), tl.reshape(rest, shape)


@triton.jit
def _merged(first, second, third, rest, HALF: tl.constexpr):
    """Lists of neighbours, two and two: their three greatest, and the greatest of the rest."""
    a1, b1 = _halves(first, HALF)
    a2, b2 = _halves(second, HALF)
    a3, b3 = _halves(third, HALF)
    a4, b4 = _halves(rest, HALF)
    lower1, upper2 = tl.minimum(a1, b1), tl.maximum(a2, b2)
    middle, lower2 = tl.minimum(lower1, upper2), tl.minimum(a2, b2)
    upper3 = tl.maximum(a3, b3)
    left = tl.maximum(tl.minimum(middle, upper3), tl.maximum(lower2, tl.minimum(a3, b3)))
    rest = tl.maximum(left, tl.maximum(a4, b4))
    return tl.maximum(a1, b1), tl.maximum(lower1, upper2), tl.maximum(middle, upper3), rest


@triton.jit
def _halves(x, HALF: tl.constexpr):
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1], HALF, 2)))


@triton.jit
def greatest_of_lists(first, second, third, rest, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """``[t, BLOCK_K]`` the ``K`` greatest keys in order, and the key that follows each of them."""
    slot = tl.arange(0, BLOCK_K)[None, :]
    found = tl.full((first.shape[0], BLOCK_K), LOWEST_KEY, tl.int32)
    following = found
    for k in tl.static_range(K):
        best = tl.max(first, axis=1)[:, None]
        found = tl.where(slot == k, best, found)
        if k > 0:
            following = tl.where(slot == k - 1, best, following)
        taken = first == best
        first = tl.where(taken, second, first)
        second = tl.where(taken, third, second)
        third = tl.where(taken, LOWEST_KEY, third)
    beyond = tl.max(tl.maximum(first, rest), axis=1)[:, None]
    return found, tl.where(slot == K - 1, beyond, following)
