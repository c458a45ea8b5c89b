"""The four classic ways to find the k greatest, on the same keys, so that they can be studied against each other.

The keys are unique integers that hold value and index; so all four keep the whole contract of ``ordered_topk``, and
differ in time and memory only. ``topk_by_algorithm`` runs one of them in C++, one scalar implementation each, where the
kernels are; the functions here are its reference, in PyTorch, NumPy and plain Python.
"""

import heapq
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moegate.ops.library import KERNELS, define, register_fake
from moegate.ops.ordered_topk.reference import index_of_key, unique_keys

BLOCK_SIZE = 256
"""Elements of a block in ``blocked``: as many as stay close to the processor."""


def full_sort(values: Tensor, k: int) -> Tensor:
    """Sort everything and keep the first ``k``: ``O(N log N)`` time, ``O(N)`` memory.

    Example:
        >>> full_sort(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3).tolist()
        [[1, 2, 3]]
    """
    keys = unique_keys(values)
    return index_of_key(keys.sort(dim=-1, descending=True).values[..., :k], keys.shape[-1])


def heap(values: Tensor, k: int) -> Tensor:
    """Keep a heap of the ``k`` best while reading each row once: ``O(N log k)`` time, ``O(k)`` memory. Plain Python.

    Example:
        >>> heap(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3).tolist()
        [[1, 2, 3]]
    """
    keys = unique_keys(values)
    best = [heapq.nlargest(k, row) for row in keys.reshape(math.prod(keys.shape[:-1]), keys.shape[-1]).tolist()]
    return index_of_key(torch.tensor(best, dtype=torch.int64).view(*keys.shape[:-1], k), keys.shape[-1])


def quickselect(values: Tensor, k: int) -> Tensor:
    """Partition around the ``k``-th best, then sort those ``k``: ``O(N)`` time on average. NumPy's introselect.

    Example:
        >>> quickselect(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3).tolist()
        [[1, 2, 3]]
    """
    keys = unique_keys(values)
    num_elements = keys.shape[-1]
    if k == 0 or keys.numel() == 0:
        return torch.empty(*keys.shape[:-1], k, dtype=torch.int64)
    greatest = np.partition(keys.cpu().numpy(), num_elements - k, axis=-1)[..., num_elements - k :]
    ordered = torch.from_numpy(greatest.copy()).sort(dim=-1, descending=True).values
    return index_of_key(ordered, num_elements)


def blocked(values: Tensor, k: int) -> Tensor:
    """The ``k`` best of each block, then the ``k`` best of those: every block is read once, while it is close.

    Example:
        >>> blocked(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3).tolist()
        [[1, 2, 3]]
    """
    keys = unique_keys(values)
    num_elements = keys.shape[-1]
    num_blocks = max(1, -(-num_elements // BLOCK_SIZE))
    lowest = torch.iinfo(torch.int64).min
    padded = functional.pad(keys, (0, num_blocks * BLOCK_SIZE - num_elements), value=lowest)
    of_each_block = padded.unflatten(-1, (num_blocks, BLOCK_SIZE)).topk(min(k, BLOCK_SIZE), dim=-1).values
    return index_of_key(of_each_block.flatten(-2).topk(k, dim=-1).values, num_elements)


ALGORITHMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "full_sort": full_sort,
    "heap": heap,
    "quickselect": quickselect,
    "blocked": blocked,
}
"""Each algorithm by its name: ``values [..., N]`` (at most float32) and ``k`` to indices ``[..., k]``."""


NAMES = tuple(ALGORITHMS)
"""The names of the algorithms; the place of a name is the number that the operator knows it by."""


def topk_by_algorithm(values: Tensor, k: int, algorithm: str) -> Tensor:
    """Indices of the ``k`` greatest values of each row, by the algorithm that is asked for.

    Args:
        values: ``[..., N]`` floating point, at most float32.
        k: how many, ``0 <= k <= N``.
        algorithm: one of ``NAMES``.

    Returns:
        ``[..., k]`` int64, those of ``ordered_topk``.

    Raises:
        ValueError: for an unknown algorithm, a ``k`` out of range, or float64.

    Example:
        >>> topk_by_algorithm(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3, "heap").tolist()
        [[1, 2, 3]]
    """
    number = _number(algorithm)
    if values.dtype == torch.float64 or not values.is_floating_point():
        raise ValueError(f"values are {values.dtype}; the keys hold float32, bfloat16 and float16.")
    if values.ndim == 0 or not 0 <= k <= values.shape[-1]:
        raise ValueError(f"k={k} is out of range for values of shape {tuple(values.shape)}.")
    rows = values.detach().float().reshape(math.prod(values.shape[:-1]), values.shape[-1])
    index: Tensor = torch.ops.moegate.topk_by_algorithm(rows, k, number)
    return index.view(*values.shape[:-1], k)


def scratch_bytes(algorithm: str, num_elements: int, k: int) -> int | None:
    """Bytes that one thread of the C++ algorithm allocates beside input and output; None without the kernels.

    ``full_sort`` and ``quickselect`` move ``N`` keys of 8 bytes, ``heap`` holds ``k``, ``blocked`` one block and two
    lists of ``k``.

    Example:
        >>> scratch_bytes("heap", 2048, 8) in (64, None)
        True
    """
    number = _number(algorithm)
    return int(torch.ops.moegate.topk_by_algorithm_scratch(num_elements, k, number)) if KERNELS.loaded else None


def _number(algorithm: str) -> int:
    if algorithm not in NAMES:
        raise ValueError(f"No algorithm is called {algorithm!r}: choose one of {', '.join(NAMES)}.")
    return NAMES.index(algorithm)


def _reference(values: Tensor, k: int, algorithm: int) -> Tensor:
    if not 0 <= algorithm < len(NAMES):
        raise RuntimeError(f"algorithm={algorithm} is unknown: choose from 0 to {len(NAMES) - 1}.")
    return ALGORITHMS[NAMES[algorithm]](values, k)


def _fake(values: Tensor, k: int, algorithm: int) -> Tensor:
    if values.ndim != 2:
        raise RuntimeError(f"The rows must come as 2 dimensions, got {values.ndim}.")
    return values.new_empty(values.shape[0], k, dtype=torch.int64)


define("topk_by_algorithm(Tensor values, int k, int algorithm) -> Tensor", _reference)
register_fake("topk_by_algorithm", _fake)
