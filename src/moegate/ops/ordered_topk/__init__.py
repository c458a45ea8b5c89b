"""Top-k with a total order, so that the same row always gives the same indices.

Contract, for each row of ``values [..., N]``:

- descending by value; equal values go to the lowest index; ``-0.0`` equals ``+0.0``;
- NaN, of either sign, ranks after ``-inf``;
- an element marked in ``excluded`` ranks after everything else, ordered by index among its kind;
- the ``k`` indices are distinct, whatever the values.
"""

from torch import Tensor

from moegate.ops.ordered_topk.reference import ordered_topk_reference, topk_by_key_reference

__all__ = ["ordered_topk", "topk_by_key"]


def ordered_topk(values: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    """Indices of the ``k`` greatest values of each row, in a total order.

    Args:
        values: ``[..., N]`` floating point; narrower types are widened to float32, which is exact.
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
    return ordered_topk_reference(values, k, excluded)


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
    return topk_by_key_reference(key, k)


def _check_k(values: Tensor, k: int) -> None:
    if not 0 <= k <= values.shape[-1]:
        raise ValueError(f"k={k} is out of range: the rows have {values.shape[-1]} elements.")
