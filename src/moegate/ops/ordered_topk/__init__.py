"""Top-k with a total order, so that the same row always gives the same indices.

Contract, for each row of ``values [..., N]``:

- descending by value; equal values go to the lowest index; ``-0.0`` equals ``+0.0``;
- NaN, of either sign, ranks after ``-inf``;
- an element marked in ``excluded`` ranks after everything else, ordered by index among its kind;
- the ``k`` indices are distinct, whatever the values.
"""

import math

import torch
from torch import Tensor

from moegate.ops import library
from moegate.ops.ordered_topk.reference import ordered_topk_reference, topk_by_key_reference

__all__ = ["ordered_topk", "topk_by_key"]

# The operators take rows, [T, N], and what is excluded in the same shape.
library.define("ordered_topk(Tensor values, int k, Tensor? excluded) -> Tensor", ordered_topk_reference)
library.define("topk_by_key(Tensor key, int k) -> Tensor", topk_by_key_reference)


def _index_fake(values_TN: Tensor, k: int, excluded_TN: Tensor | None = None) -> Tensor:
    if values_TN.ndim != 2:
        raise RuntimeError(f"The rows must come as 2 dimensions, got {values_TN.ndim}.")
    return values_TN.new_empty(values_TN.shape[0], k, dtype=torch.int64)


library.implement("ordered_topk", "moegate.ops.ordered_topk.gpu_operator:ordered_topk")
library.implement("topk_by_key", "moegate.ops.ordered_topk.gpu_operator:topk_by_key")
library.register_fake("ordered_topk", _index_fake)
library.register_fake("topk_by_key", _index_fake)


def ordered_topk(values: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    """Indices of the ``k`` greatest values of each row, in a total order.

    Args:
        values: ``[..., N]`` floating point; narrower types are widened to float32, which is exact. float64 has no
            kernel: a stable sort of PyTorch's serves it on every device.
        k: how many, ``0 <= k <= N``.
        excluded: ``[..., N]`` bool, broadcastable: elements that come only after all others.

    Returns:
        ``[..., k]`` int64.

    Raises:
        ValueError: when ``k`` is out of range.

    Example:
        >>> import torch
        >>> ordered_topk(torch.tensor([[1.0, float("nan"), 3.0, 3.0]]), 4).tolist()
        [[2, 3, 0, 1]]
    """
    _check_k(values, k)
    values = values.detach()
    if values.dtype not in _WITH_KERNEL:
        return ordered_topk_reference(values, k, excluded)
    excluded_TN = None if excluded is None else _rows(excluded.expand(values.shape))
    index_TK: Tensor = torch.ops.moegate.ordered_topk.default(_rows(values), k, excluded_TN)
    return index_TK.view(*values.shape[:-1], k)


def topk_by_key(key: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` greatest int32 keys of each row; equal keys go to the lowest index.

    Args:
        key: ``[..., N]`` int32.
        k: how many, ``0 <= k <= N``.

    Returns:
        ``[..., k]`` int64.

    Raises:
        ValueError: when ``k`` is out of range.

    Example:
        >>> import torch
        >>> topk_by_key(torch.tensor([[5, 9, 9]], dtype=torch.int32), 2).tolist()
        [[1, 2]]
    """
    _check_k(key, k)
    index_TK: Tensor = torch.ops.moegate.topk_by_key.default(_rows(key), k)
    return index_TK.view(*key.shape[:-1], k)


_WITH_KERNEL = (torch.float32, torch.bfloat16, torch.float16)


def _rows(values: Tensor) -> Tensor:
    return values if values.ndim == 2 else values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def _check_k(values: Tensor, k: int) -> None:
    if not 0 <= k <= values.shape[-1]:
        raise ValueError(f"k={k} is out of range: the rows have {values.shape[-1]} elements.")
