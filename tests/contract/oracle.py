"""The contract of selection in plain Python and NumPy: sorts of (-value, index), one row at a time, in float64.

Nothing here uses the library's selection code, and nothing is clever.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Values = NDArray[np.floating]


def widened(tensor: torch.Tensor) -> Values:
    """The values in float64, which holds each of the narrower types exactly."""
    return tensor.detach().double().numpy()


def softmax(logits_TE: Values) -> Values:
    with np.errstate(all="ignore"):
        powers_TE = np.exp(logits_TE - logits_TE.max(axis=-1, keepdims=True, initial=-np.inf))
        return powers_TE / powers_TE.sum(axis=-1, keepdims=True)


def sigmoid(logits_TE: Values) -> Values:
    decay_TE = np.exp(-np.abs(logits_TE))
    return np.where(logits_TE >= 0, 1.0, decay_TE) / (1.0 + decay_TE)


def sqrt_softplus(logits_TE: Values) -> Values:
    # Far below 0 the exponential underflows before its root does.
    root_of_exponential_TE = np.exp(np.minimum(logits_TE, 0.0) / 2)
    softplus_TE = np.maximum(logits_TE, 0.0) + np.log1p(np.exp(-np.abs(logits_TE)))
    return np.where(logits_TE < -40.0, root_of_exponential_TE, np.sqrt(softplus_TE))


SCORES: dict[str, Callable[[Values], Values]] = {
    "softmax": softmax,
    "softmax_selected": softmax,
    "sigmoid": sigmoid,
    "sqrt_softplus": sqrt_softplus,
    "identity": lambda logits_TE: logits_TE,
    "relu": lambda logits_TE: np.maximum(logits_TE, 0.0),
    "constant": np.ones_like,
}


def ranked(values: Sequence[float], excluded: Sequence[bool] | None = None) -> list[int]:
    """All indices, best first: descending, NaN last, what is excluded after that; ties to the lowest index."""
    excluded = [False] * len(values) if excluded is None else excluded

    def key(index: int) -> tuple[bool, bool, float, int]:
        value = float(values[index])
        is_nan = math.isnan(value)
        return bool(excluded[index]), is_nan, 0.0 if is_nan else -value, index

    return sorted(range(len(values)), key=key)


def top_k(values_TE: Values, k: int) -> list[list[int]]:
    return [ranked(row)[:k] for row in values_TE]


def group_score(values: Sequence[float], how: str) -> float:
    """The maximum or the sum of the two greatest, each occurrence counted; a NaN counts as -inf."""
    known = sorted((-math.inf if math.isnan(value) else value for value in values), reverse=True)
    return known[0] if how == "max" else known[0] + known[1]


def grouped_top_k(
    order_TE: Values, group_TE: Values, k: int, num_groups: int, groups_kept: int, how: str
) -> list[list[int]]:
    """Groups are judged by ``group_TE``, experts ordered by ``order_TE``."""
    size = order_TE.shape[1] // num_groups
    chosen = []
    for order_row, group_row in zip(order_TE, group_TE, strict=True):
        with np.errstate(invalid="ignore"):
            scores = [group_score(group_row[start : start + size], how) for start in range(0, len(group_row), size)]
        kept = set(ranked(scores)[:groups_kept])
        allowed = [index for index in ranked(order_row) if index // size in kept]
        chosen.append(allowed[:k])
    return chosen
