"""The four classic ways to find the k greatest, on the same keys, so that they can be studied against each other.

The keys are the unique int64 keys of the reference, which hold value and index; so all four keep the whole contract
of ``ordered_topk``, and differ in time and memory only. The operator itself uses ``torch.topk`` on these keys.
"""

import heapq
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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
    best = [heapq.nlargest(k, row) for row in keys.reshape(-1, keys.shape[-1]).tolist()]
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
