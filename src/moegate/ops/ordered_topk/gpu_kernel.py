"""Top-k with a total order in Triton, for rows of any length.

Few of a short row are taken one by one, by ``rounds_kernel``. Otherwise a row is read twice. First for a threshold:
every lane keeps the greatest it sees, and the k-th greatest lane is a rank that at least k elements reach, and hardly
more, as long as there are more lanes than k. Then for the candidates, the elements that reach it, which are written as
keys side by side. Where equal values make them too many, the exact k-th greatest is found by bisection, and of the
elements equal to it only the first are taken. ``sorted_keys_kernel`` puts the candidates of a row in order.

Names ending in letters give the axes: ``t`` rows of the program, ``n`` elements, ``l`` lanes, ``k`` places.
"""

import triton
import triton.language as tl

from moegate.ops.gpu.ranking import EXCLUDED, LOWEST, index_of, keys_of, ordered
from moegate.ops.gpu.rounding import widened
from moegate.ops.portable.gpu_kernel import score_of

_NOWHERE = tl.constexpr(2**31 - 1)
_RANK_OF_MINUS_INFINITY = tl.constexpr(-0x7F800001)


@triton.jit
def rank_of(x):
    """The int32 of the same order; an int32 is its own rank."""
    if x.dtype == tl.int32:
        return x
    return ordered(widened(x, tl.float32))


@triton.jit
def rounds_kernel(
    values_ptr, excluded_ptr, index_ptr, num_rows, num_values, stride_t, stride_n, excluded_stride_t, excluded_stride_n,
    K: tl.constexpr, HAS_EXCLUDED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The ``K`` greatest of ``BLOCK_T`` rows, one after the other: the greatest rank, then the first that has it."""
    row_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    place_n = tl.arange(0, BLOCK_N)
    slot_k = tl.arange(0, BLOCK_K)
    real_tn = (row_t < num_rows)[:, None] & (place_n < num_values)[None, :]
    wide_n = place_n.to(tl.int64)
    x_tn = tl.load(values_ptr + row_t[:, None] * stride_t + wide_n[None, :] * stride_n, mask=real_tn, other=0)
    rank_tn = tl.where(real_tn, rank_of(x_tn), EXCLUDED)
    if HAS_EXCLUDED:
        excluded_tn = excluded_ptr + row_t[:, None] * excluded_stride_t + wide_n[None, :] * excluded_stride_n
        rank_tn = tl.where(tl.load(excluded_tn, mask=real_tn, other=0) != 0, EXCLUDED, rank_tn)
    # What has been taken, or is none, has the last rank and no place, so even among its equals it is never the first.
    place_tn = tl.where(real_tn, place_n[None, :], _NOWHERE)
    found_tk = tl.full((BLOCK_T, BLOCK_K), 0, tl.int32)
    for k in tl.static_range(K):
        best_t = tl.max(rank_tn, axis=1)
        first_t = tl.min(tl.where(rank_tn == best_t[:, None], place_tn, _NOWHERE), axis=1)
        found_tk = tl.where(slot_k[None, :] == k, first_t[:, None], found_tk)
        taken_tn = place_tn == first_t[:, None]
        rank_tn = tl.where(taken_tn, EXCLUDED, rank_tn)
        place_tn = tl.where(taken_tn, _NOWHERE, place_tn)
    out_tk = index_ptr + row_t[:, None] * K + slot_k[None, :]
    tl.store(out_tk, found_tk, mask=(row_t < num_rows)[:, None] & (slot_k < K)[None, :])


@triton.jit
def read_values(
    row_ptr, excluded_ptr, bias_ptr, place, num_values, stride_n, excluded_stride_n, greatest, total,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXCLUDED: tl.constexpr, GROUP_SIZE: tl.constexpr,
):  # fmt: skip
    """What some elements of a row are ordered by, the least possible where there is none; and which of them are NaN."""
    real = place < num_values
    wide = place.to(tl.int64)
    if row_ptr.dtype.element_ty == tl.int32:
        value = tl.load(row_ptr + wide * stride_n, mask=real, other=EXCLUDED)
        spoiled = value != value
    else:
        z = widened(tl.load(row_ptr + wide * stride_n, mask=real, other=-float("inf")), tl.float32)
        spoiled = z != z
        value = score_of(z, greatest, total, SCORE)
        if HAS_BIAS:
            value += tl.load(bias_ptr + place, mask=real, other=0.0)
        if HAS_BIAS or SCORE != "identity":
            value = tl.where(real, value, -float("inf"))
    return value, spoiled


@triton.jit
def read_candidates(
    row_ptr, excluded_ptr, bias_ptr, place, num_values, stride_n, excluded_stride_n, greatest, total,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXCLUDED: tl.constexpr, GROUP_SIZE: tl.constexpr,
):  # fmt: skip
    """As ``read_values``, but the least possible also for what is excluded."""
    value, spoiled = read_values(
        row_ptr, excluded_ptr, bias_ptr, place, num_values, stride_n, excluded_stride_n, greatest, total,
        SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE,
    )  # fmt: skip
    if HAS_EXCLUDED:
        excluded = read_excluded(excluded_ptr, place, place < num_values, excluded_stride_n, GROUP_SIZE)
        value = tl.where(excluded, -float("inf"), value)
    return value, spoiled


@triton.jit
def read_excluded(excluded_ptr, place, real, stride_n, GROUP_SIZE: tl.constexpr):
    """Which elements of a row are excluded, by their groups."""
    return tl.load(excluded_ptr + (place // GROUP_SIZE).to(tl.int64) * stride_n, mask=real, other=0) != 0


@triton.jit
def read_ranks(
    row_ptr, excluded_ptr, bias_ptr, place, num_values, stride_n, excluded_stride_n, greatest, total,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXCLUDED: tl.constexpr, GROUP_SIZE: tl.constexpr,
):  # fmt: skip
    """The ranks of some elements of a row, and which of the elements are NaN."""
    value, spoiled = read_values(
        row_ptr, excluded_ptr, bias_ptr, place, num_values, stride_n, excluded_stride_n, greatest, total,
        SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE,
    )  # fmt: skip
    rank = rank_of(value)
    if HAS_EXCLUDED:
        excluded = read_excluded(excluded_ptr, place, place < num_values, excluded_stride_n, GROUP_SIZE)
        rank = tl.where(excluded, EXCLUDED, rank)
    return rank, spoiled


@triton.jit
def read_block(
    row_ptr, excluded_ptr, bias_ptr, place_l, num_values, stride_n, excluded_stride_n, greatest, total,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXCLUDED: tl.constexpr, GROUP_SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """``DEPTH`` values of each lane, ``place_l`` and as many lanes behind it; and whether any of a lane's is NaN."""
    values = ()
    spoiled_l = place_l != place_l
    for d in tl.static_range(DEPTH):
        value_l, is_nan_l = read_candidates(
            row_ptr, excluded_ptr, bias_ptr, place_l + d * place_l.shape[0], num_values, stride_n, excluded_stride_n,
            greatest, total, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE,
        )  # fmt: skip
        values = values + (value_l,)  # noqa: RUF005 - Triton has no other way
        spoiled_l = spoiled_l | is_nan_l
    return values, spoiled_l


@triton.jit
def lane_ranks(values, DEPTH: tl.constexpr):
    """The rank of the greatest value of each lane; NaN and whatever is no candidate count as ``-inf``."""
    if values[0].dtype == tl.int32:
        rank_l = values[0]
        for d in tl.static_range(1, DEPTH):
            rank_l = tl.maximum(rank_l, values[d])
        return rank_l
    greatest_l = tl.maximum(values[0], -float("inf"))
    for d in tl.static_range(1, DEPTH):
        greatest_l = tl.maximum(greatest_l, values[d])
    return ordered(greatest_l)


@triton.jit
def reaches(value, place, num_values, threshold):
    """Which values have at least a rank; that of a float has to be greater than that of ``-inf``."""
    if value.dtype == tl.int32:
        return (place < num_values) & (value >= threshold)
    return value >= (threshold ^ ((threshold >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def rank_of_number(value):
    """``rank_of`` where no float is NaN, in fewer instructions."""
    if value.dtype == tl.int32:
        return value
    # Adding zero turns -0.0 into +0.0; a negative float's bits count downwards.
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31).to(tl.uint32, bitcast=True) >> 1).to(tl.int32, bitcast=True)


@triton.jit
def between(least, most):
    """The middle of two int32, rounded up, without an overflow."""
    return (least | most) - ((least ^ most) >> 1)


@triton.jit
def reached_by(rank_l, K):
    """The greatest rank that ``K`` of the lanes reach, or any that exactly ``K`` reach."""
    most = tl.max(rank_l, axis=0)
    least = tl.min(rank_l, axis=0)
    while least < most:
        middle = between(least, most)
        count = tl.sum((rank_l >= middle).to(tl.int32), axis=0)
        most = tl.where(count > K, most, tl.where(count == K, middle, middle - 1))
        least = tl.where(count >= K, middle, least)
    return least


@triton.jit
def write_reaching(
    values, place_l, num_values, threshold, keys_ptr, found, DEPTH: tl.constexpr, CAPACITY: tl.constexpr
):
    """Writes the keys of the values that reach a rank behind those found before, lane by lane; returns how many are
    found now."""
    count_l = tl.full(place_l.shape, 0, tl.int32)
    for d in tl.static_range(DEPTH):
        count_l += reaches(values[d], place_l + d * place_l.shape[0], num_values, threshold).to(tl.int32)
    target_l = found + tl.cumsum(count_l, axis=0) - count_l
    for d in tl.static_range(DEPTH):
        own_l = place_l + d * place_l.shape[0]
        taken_l = reaches(values[d], own_l, num_values, threshold)
        key_l = keys_of(rank_of_number(values[d]), own_l)
        tl.store(keys_ptr + target_l, key_l, mask=taken_l & (target_l < CAPACITY))
        target_l += taken_l.to(tl.int32)
    return found + tl.sum(count_l, axis=0)


@triton.jit
def exact_threshold(
    row_ptr, excluded_ptr, bias_ptr, num_values, stride_n, excluded_stride_n, greatest, total, least, middle, most, K,
    lane_l, SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXCLUDED: tl.constexpr, GROUP_SIZE: tl.constexpr,
):  # fmt: skip
    """As ``reached_by``, of a whole row, between two ranks, first asking for one in the ``middle``; and at most as many
    as lie above it."""
    above = tl.full((), 0, tl.int32)
    while least < most:
        count_l = tl.full(lane_l.shape, 0, tl.int32)
        for start in range(0, num_values, lane_l.shape[0]):
            place_l = start + lane_l
            rank_l, _ = read_ranks(
                row_ptr, excluded_ptr, bias_ptr, place_l, num_values, stride_n, excluded_stride_n,
                greatest, total, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE,
            )  # fmt: skip
            count_l += ((place_l < num_values) & (rank_l >= middle)).to(tl.int32)
        count = tl.sum(count_l, axis=0)
        above = tl.where(count < K, count, above)
        most = tl.where(count > K, most, tl.where(count == K, middle, middle - 1))
        least = tl.where(count >= K, middle, least)
        middle = between(least, most)
        if row_ptr.dtype.element_ty != tl.int32:
            # Between -inf and what is excluded there is nothing but NaN.
            most = tl.where(most < _RANK_OF_MINUS_INFINITY, tl.minimum(most, EXCLUDED + 1), most)
            middle = tl.where(most <= _RANK_OF_MINUS_INFINITY, most, middle)
    return least, above


@triton.jit
def write_first(
    row_ptr, excluded_ptr, bias_ptr, keys_ptr, num_values, stride_n, excluded_stride_n, greatest, total,
    threshold, ties, lane_l,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXCLUDED: tl.constexpr, GROUP_SIZE: tl.constexpr,
    CAPACITY: tl.constexpr,
):  # fmt: skip
    """Writes the keys of the elements that reach a rank, of its equals the first few; returns how many there are."""
    found = tl.full((), 0, tl.int32)
    equal_before = tl.full((), 0, tl.int32)
    for start in range(0, num_values, lane_l.shape[0]):
        place_l = start + lane_l
        rank_l, _ = read_ranks(
            row_ptr, excluded_ptr, bias_ptr, place_l, num_values, stride_n, excluded_stride_n,
            greatest, total, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE,
        )  # fmt: skip
        taken_l = (place_l < num_values) & (rank_l >= threshold)
        equal_l = (taken_l & (rank_l == threshold)).to(tl.int32)
        early_l = equal_before + tl.cumsum(equal_l, axis=0) <= ties
        equal_before += tl.sum(equal_l, axis=0)
        taken_l = taken_l & ((equal_l == 0) | early_l)
        target_l = found + tl.cumsum(taken_l.to(tl.int32), axis=0) - 1
        tl.store(keys_ptr + target_l, keys_of(rank_l, place_l), mask=taken_l & (target_l < CAPACITY))
        found += tl.sum(taken_l.to(tl.int32), axis=0)
    return found


@triton.jit
def candidates_kernel(
    values_ptr, excluded_ptr, bias_ptr, mask_ptr, softmax_ptr, keys_ptr, spoiled_ptr,
    num_values, stride_t, stride_n, excluded_stride_t, excluded_stride_n, K,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXCLUDED: tl.constexpr, HAS_MASK: tl.constexpr,
    WITH_SPOILED: tl.constexpr, GROUP_SIZE: tl.constexpr,
    LANES: tl.constexpr, DEPTH: tl.constexpr, IN_ONE_BLOCK: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """At least the ``K`` greatest of one row, as at most ``CAPACITY`` keys in any order; the rest is ``LOWEST``."""
    row = tl.program_id(0).to(tl.int64)
    if HAS_MASK:  # noqa: SIM102 - decided when the kernel is compiled
        if tl.load(mask_ptr + row) == 0:
            return
    greatest, total = 0.0, 1.0
    if SCORE == "softmax":
        greatest, total = tl.load(softmax_ptr + 2 * row), tl.load(softmax_ptr + 2 * row + 1)
    row_ptr = values_ptr + row * stride_t
    if HAS_EXCLUDED:
        excluded_ptr += row * excluded_stride_t
    keys_ptr += row * CAPACITY
    # That number is 0, which the compiler does not know: so it can't give a thread neighbours, to be read as one word.
    # That would cost more than it saves, as what a thread writes are no neighbours.
    lane_l = tl.arange(0, LANES) ^ tl.program_id(1)
    values, spoiled_l = read_block(
        row_ptr, excluded_ptr, bias_ptr, lane_l, num_values, stride_n, excluded_stride_n,
        greatest, total, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE, DEPTH,
    )  # fmt: skip
    rank_l = lane_ranks(values, DEPTH)
    if not IN_ONE_BLOCK:
        for start in range(LANES * DEPTH, num_values, LANES * DEPTH):
            others, spoiled_too_l = read_block(
                row_ptr, excluded_ptr, bias_ptr, start + lane_l, num_values, stride_n, excluded_stride_n,
                greatest, total, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE, DEPTH,
            )  # fmt: skip
            rank_l = tl.maximum(rank_l, lane_ranks(others, DEPTH))
            spoiled_l = spoiled_l | spoiled_too_l
    if WITH_SPOILED:
        tl.store(spoiled_ptr + row, tl.max(spoiled_l.to(tl.int32), axis=0))

    threshold = reached_by(rank_l, K)
    none = tl.full((), 0, tl.int32)
    found = write_reaching(values, lane_l, num_values, threshold, keys_ptr, none, DEPTH, CAPACITY)
    if not IN_ONE_BLOCK:
        for start in range(LANES * DEPTH, num_values, LANES * DEPTH):
            others, _ = read_block(
                row_ptr, excluded_ptr, bias_ptr, start + lane_l, num_values, stride_n, excluded_stride_n,
                greatest, total, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE, DEPTH,
            )  # fmt: skip
            found = write_reaching(others, start + lane_l, num_values, threshold, keys_ptr, found, DEPTH, CAPACITY)
    # Fewer than are wanted are greater than -inf: the rest are such, or NaN, or excluded. Too many are equal ones.
    too_few = (values[0].dtype != tl.int32) & (threshold <= _RANK_OF_MINUS_INFINITY)
    if too_few | (found > CAPACITY):
        # What has been written is written over.
        tl.debug_barrier()
        least = tl.where(too_few, EXCLUDED, threshold)
        most = tl.max(rank_l, axis=0)
        # Too many candidates are mostly equals of the first threshold, so what lies next to it is asked first.
        middle = threshold + 1
        threshold, above = exact_threshold(
            row_ptr, excluded_ptr, bias_ptr, num_values, stride_n, excluded_stride_n, greatest, total,
            least, middle, most, K, lane_l, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE,
        )  # fmt: skip
        found = write_first(
            row_ptr, excluded_ptr, bias_ptr, keys_ptr, num_values, stride_n, excluded_stride_n, greatest, total,
            threshold, K - above, lane_l, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE, CAPACITY,
        )  # fmt: skip
    target_c = tl.arange(0, CAPACITY)
    tl.store(keys_ptr + target_c, tl.full((CAPACITY,), LOWEST, tl.int64), mask=target_c >= found)


@triton.jit
def sorted_keys_kernel(keys_ptr, index_ptr, num_rows, K: tl.constexpr, CAPACITY: tl.constexpr, BLOCK_T: tl.constexpr):
    """The indices of the ``K`` greatest keys of ``BLOCK_T`` rows, in order."""
    row_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot_c = tl.arange(0, CAPACITY)
    here_t1 = (row_t < num_rows)[:, None]
    key_tc = tl.load(keys_ptr + row_t[:, None] * CAPACITY + slot_c[None, :], mask=here_t1, other=LOWEST)
    key_tc = tl.sort(key_tc, descending=True)
    out_tc = index_ptr + row_t[:, None] * K + slot_c[None, :]
    tl.store(out_tc, index_of(key_tc), mask=here_t1 & (slot_c < K)[None, :])


@triton.jit
def all_keys_kernel(
    values_ptr, excluded_ptr, bias_ptr, softmax_ptr, keys_ptr, spoiled_ptr,
    num_values, stride_t, stride_n, excluded_stride_t, excluded_stride_n,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXCLUDED: tl.constexpr, WITH_SPOILED: tl.constexpr,
    GROUP_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The keys of all elements of one row, for a sort."""
    row = tl.program_id(0).to(tl.int64)
    place_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    greatest, total = 0.0, 1.0
    if SCORE == "softmax":
        greatest, total = tl.load(softmax_ptr + 2 * row), tl.load(softmax_ptr + 2 * row + 1)
    if HAS_EXCLUDED:
        excluded_ptr += row * excluded_stride_t
    rank_n, spoiled_n = read_ranks(
        values_ptr + row * stride_t, excluded_ptr, bias_ptr, place_n, num_values, stride_n, excluded_stride_n,
        greatest, total, SCORE, HAS_BIAS, HAS_EXCLUDED, GROUP_SIZE,
    )  # fmt: skip
    tl.store(keys_ptr + row * num_values + place_n, keys_of(rank_n, place_n), mask=place_n < num_values)
    if WITH_SPOILED:
        tl.atomic_max(spoiled_ptr + row, tl.max(spoiled_n.to(tl.int32), axis=0), sem="relaxed")
