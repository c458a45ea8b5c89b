"""Top-k with a total order on devices that Triton serves: which way, sizes, allocation, launches."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from moegate.ops.library import falls_back
from moegate.ops.ordered_topk.gpu_kernel import (
    all_keys_kernel,
    candidates_kernel,
    rounds_kernel,
    sorted_keys_kernel,
)
from moegate.ops.ordered_topk.reference import ordered_topk_reference

_LARGEST_ROUNDS = (16, 1024)  # k, elements
_LARGEST_K_OF_CANDIDATES = 2048
LARGEST_SORT_OF_A_PROGRAM = 512
_KEYS_OF_A_PROGRAM = 1024


class Sizes(NamedTuple):
    """How rows are gone through: ``lanes`` elements side by side, ``depth`` times at once; room for the candidates."""

    lanes: int
    depth: int
    capacity: int
    num_warps: int


class Ranking(NamedTuple):
    """What the elements of a row are ordered by, beyond their values; the defaults are the values themselves.

    Attributes:
        score: of ``moegate.ops.portable.gpu_kernel.score_of``.
        bias: ``[N]`` float32, added to the scores, or None.
        softmax: ``[T, 2]`` float32, for the score ``"softmax"``: each row's greatest logit and its total.
        excluded: ``[T, N / group_size]`` bool, of groups of neighbours, or None.
        group_size: elements of a group.
        mask: ``[T]`` bool, or None: where it is False, the row is not looked at, and its result is arbitrary.
    """

    score: str = "identity"
    bias: Tensor | None = None
    softmax: Tensor | None = None
    excluded: Tensor | None = None
    group_size: int = 1
    mask: Tensor | None = None

    def switches(self) -> dict[str, object]:
        """The choices that the kernels are compiled for."""
        return {
            "SCORE": self.score,
            "HAS_BIAS": self.bias is not None,
            "HAS_EXCLUDED": self.excluded is not None,
            "GROUP_SIZE": self.group_size,
            "enable_fp_fusion": False,
        }

    def strides(self) -> tuple[int, ...]:
        """Of ``excluded``."""
        return (0, 0) if self.excluded is None else self.excluded.stride()


def ordered_topk(values: Tensor, k: int, excluded: Tensor | None) -> Tensor:
    """``[T, k]`` int64; float64 is left to the reference, whose sort serves every device."""
    _check(values, k, excluded)
    if values.dtype == torch.float64:
        falls_back("ordered_topk", "the keys of float64 fill an int64, with no place for an index")
        return ordered_topk_reference(values, k, excluded)
    return topk_rows(values, k, Ranking(excluded=excluded))


def topk_by_key(key: Tensor, k: int) -> Tensor:
    """``[T, k]`` int64 of int32 keys."""
    if key.dtype != torch.int32:
        raise RuntimeError(f"key must be int32, got {key.dtype}.")
    _check(key, k, None)
    return topk_rows(key, k, Ranking())


def topk_rows(values: Tensor, k: int, ranking: Ranking, dtype: torch.dtype = torch.int64) -> Tensor:
    """``[T, k]`` indices of the first elements of each row in the order of a ranking."""
    num_rows, num_values = values.shape
    index = torch.empty(num_rows, k, dtype=dtype, device=values.device)
    if index.numel() == 0:
        return index
    most_k, most_values = _LARGEST_ROUNDS
    plain = ranking._replace(excluded=None, mask=None) == Ranking() and ranking.group_size == 1
    if plain and k <= most_k and num_values <= most_values:
        return _by_rounds(values, ranking, index)
    return put_in_order(candidates_of(values, k, ranking).keys, index)


def _by_rounds(values: Tensor, ranking: Ranking, index: Tensor) -> Tensor:
    num_rows, num_values = values.shape
    k = index.shape[1]
    block_n = triton.next_power_of_2(num_values)
    block_t = max(1, min(4, 256 // block_n))
    rounds_kernel[(triton.cdiv(num_rows, block_t),)](
        values, ranking.excluded, index, num_rows, num_values, *values.stride(), *ranking.strides(),
        K=k, HAS_EXCLUDED=ranking.excluded is not None, BLOCK_T=block_t, BLOCK_N=block_n,
        BLOCK_K=triton.next_power_of_2(k), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return index


class Candidates(NamedTuple):
    """``keys [T, C]``, the greatest of each row among them, in any order; ``spoiled [T]`` int32, which rows hold a NaN
    value, empty unless asked for."""

    keys: Tensor
    spoiled: Tensor


def candidates_of(
    values: Tensor, k: int, ranking: Ranking, *, with_spoiled: bool = False, sizes: Sizes | None = None
) -> Candidates:
    """Keys among which are those of the ``k`` greatest of each row."""
    num_rows, num_values = values.shape
    if sizes is None and k > _LARGEST_K_OF_CANDIDATES:
        return _all_keys(values, ranking, with_spoiled)
    sizes = sizes_for(num_values, k) if sizes is None else sizes
    keys = torch.empty(num_rows, sizes.capacity, dtype=torch.int64, device=values.device)
    spoiled = torch.empty(num_rows if with_spoiled else 0, dtype=torch.int32, device=values.device)
    candidates_kernel[(num_rows,)](
        values, ranking.excluded, ranking.bias, ranking.mask, ranking.softmax, keys, spoiled,
        num_values, *values.stride(), *ranking.strides(), k,
        HAS_MASK=ranking.mask is not None, WITH_SPOILED=with_spoiled, LANES=sizes.lanes, DEPTH=sizes.depth,
        IN_ONE_BLOCK=num_values <= sizes.lanes * sizes.depth, CAPACITY=sizes.capacity, num_warps=sizes.num_warps,
        **ranking.switches(),
    )  # fmt: skip
    return Candidates(keys, spoiled)


def _all_keys(values: Tensor, ranking: Ranking, with_spoiled: bool) -> Candidates:
    num_rows, num_values = values.shape
    keys = torch.empty(num_rows, num_values, dtype=torch.int64, device=values.device)
    # Several programs look at a row.
    spoiled = torch.zeros(num_rows if with_spoiled else 0, dtype=torch.int32, device=values.device)
    all_keys_kernel[num_rows, triton.cdiv(num_values, _KEYS_OF_A_PROGRAM)](
        values, ranking.excluded, ranking.bias, ranking.softmax, keys, spoiled,
        num_values, *values.stride(), *ranking.strides(),
        WITH_SPOILED=with_spoiled, BLOCK_N=_KEYS_OF_A_PROGRAM, **ranking.switches(),
    )  # fmt: skip
    return Candidates(keys, spoiled)


def put_in_order(keys: Tensor, index: Tensor) -> Tensor:
    """Fills ``index [T, k]`` with the indices of the greatest keys, and returns it."""
    num_rows, num_keys = keys.shape
    if num_keys > LARGEST_SORT_OF_A_PROGRAM:
        best = keys.sort(dim=-1, descending=True).values[:, : index.shape[1]]
        return index.copy_(~best & 0xFFFFFFFF)
    block_t = max(1, 128 // num_keys)
    sorted_keys_kernel[(triton.cdiv(num_rows, block_t),)](
        keys, index, num_rows, K=index.shape[1], CAPACITY=num_keys, BLOCK_T=block_t,
        num_warps=1 if num_keys <= 128 else 4, enable_fp_fusion=False,
    )  # fmt: skip
    return index


def sizes_for(num_values: int, k: int) -> Sizes:
    """The sizes for the ``k`` greatest of so many; they do not depend on the number of rows.

    Four lanes for each of ``k`` leave about 1.15 k candidates where values differ, two lanes 1.4 k. A row of up to 32
    elements a thread stays in registers; a longer one is read twice, the second time from the cache.
    """
    places = triton.next_power_of_2(k)
    # Every warp takes part in the search for the threshold, so few of them do least work, and many wait least.
    if num_values <= 1024 and k <= 64:
        warps = 1
    elif num_values <= 16384 and k <= 512:
        warps = 4
    else:
        warps = 16 if num_values > 16384 else 8
    lanes = max(128 * warps, min(4 * places, 4096))
    depth = triton.cdiv(num_values, lanes)
    if lanes * depth > 1024 * warps:
        depth = max(1, 128 * warps // lanes)
    return Sizes(lanes=lanes, depth=depth, capacity=max(16, 2 * places), num_warps=warps)


def _check(values: Tensor, k: int, excluded: Tensor | None) -> None:
    if values.ndim != 2:
        raise RuntimeError(f"values must have 2 dimensions, got {values.ndim}.")
    if not 0 <= k <= values.shape[1]:
        raise RuntimeError(f"k={k} is out of range: the rows have {values.shape[1]} elements.")
    if excluded is not None and (excluded.dtype != torch.bool or excluded.shape != values.shape):
        raise RuntimeError(
            f"excluded must be bool in the shape of the values, {list(values.shape)}; got {excluded.dtype} "
            f"{list(excluded.shape)}."
        )
