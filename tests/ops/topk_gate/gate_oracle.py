"""The gate in plain Python and NumPy: sorts of (-value, index), one row at a time; weights in float64.

Selection scores are float32 by definition, one rounding at a time; NumPy does the same roundings as the contract asks.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
f32 = np.float32


class Expected(NamedTuple):
    index: list[list[int]]
    weights: Array  # float64, before its two roundings
    counts: list[int]
    logsumexp: Array


# --- selection scores: float32, no fused operations ----------------------------------------------------------------


def exp32(x: Array) -> Array:
    x = np.where(np.isnan(x), x, np.clip(x, f32(-104), f32(89)))
    n = np.rint(x * f32(1.44269504088896341))
    r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
    p = np.full_like(r, f32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f32(c)
    mantissa = (p * (r * r) + r) + f32(1)
    whole = np.where(np.isnan(n), 0, n).astype(np.int32)
    return np.ldexp(np.ldexp(mantissa, whole >> 1), whole - (whole >> 1)).astype(f32)


def log1p32(u: Array) -> Array:
    s = u / (f32(2) + u)
    q = s * s
    p = np.full_like(s, f32(0.14078889156761287))
    for c in (0.13982578878397325, 0.20012297614909472, 0.3333316082070072, 1.000000003840879):
        p = p * q + f32(c)
    return (f32(2) * s) * p


def sigmoid32(z: Array) -> Array:
    small = exp32(-np.abs(z))
    return np.where(z >= 0, f32(1), small) / (f32(1) + small)


def sqrt_softplus32(z: Array) -> Array:
    body = np.sqrt(np.maximum(z, f32(0)) + log1p32(exp32(-np.abs(z))))
    return np.where(z < f32(-40), exp32(z * f32(0.5)), body)


def softmax32(z: Array) -> Array:
    powers = exp32(z - z.max(axis=-1, keepdims=True))
    on_grid = np.rint(powers.astype(np.float64) * 2.0**36) / 2.0**36
    return powers / on_grid.sum(axis=-1, keepdims=True).astype(f32)


SELECTION_SCORES = {
    "softmax": softmax32,
    "softmax_selected": lambda z: z,
    "sigmoid": sigmoid32,
    "sqrt_softplus": sqrt_softplus32,
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, f32(0)),
}


# --- selection ----------------------------------------------------------------------------------------------------


def ranked(values: Sequence[float], allowed: Sequence[bool] | None = None) -> list[int]:
    """The indices of what is allowed, best first: descending, NaN last, ties to the lowest index."""

    def key(index: int) -> tuple[bool, float, int]:
        value = float(values[index])
        return math.isnan(value), 0.0 if math.isnan(value) else -value, index

    return sorted((i for i in range(len(values)) if allowed is None or allowed[i]), key=key)


def group_score(values: Array, how: str) -> float:
    known = sorted((-math.inf if math.isnan(value) else value for value in values.tolist()), reverse=True)
    return known[0] if how == "max" else float(f32(known[0]) + f32(known[1]))


def chosen_of(z: Array, bias: Array | None, rule: dict[str, Any]) -> list[int]:
    """The experts of one token, from its float32 logits."""
    scores = SELECTION_SCORES[rule["score"]](z)
    if bias is not None:
        scores = scores + bias
    ranking = scores if bias is not None or rule["rank_by"] == "scores" else z
    size = len(z) // rule["num_groups"]
    judged = ranking if rule["group_score"] == "max" else scores
    groups = [group_score(judged[start : start + size], rule["group_score"]) for start in range(0, len(z), size)]
    kept = set(ranked(groups)[: rule["groups_kept"]]) if rule["groups_kept"] < len(groups) else set(range(len(groups)))
    return ranked(ranking, [i // size in kept for i in range(len(z))])[: rule["top_k"]]


# --- weights: float64 ---------------------------------------------------------------------------------------------


def sqrt_softplus(z: Array) -> Array:
    return np.where(z < -40, np.exp(z / 2), np.sqrt(np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))))


def weights_of(z: Array, index: list[int], rule: dict[str, Any]) -> Array:
    """The weights of one token before the scale, from its logits in float64."""
    chosen = z[index]
    decay = np.exp(-np.abs(chosen))
    scores = {
        "softmax": lambda: np.exp(chosen - z.max()) / np.exp(z - z.max()).sum(),
        "softmax_selected": lambda: np.exp(chosen - chosen.max()) / np.exp(chosen - chosen.max()).sum(),
        "sigmoid": lambda: np.where(chosen >= 0, 1.0, decay) / (1 + decay),
        "sqrt_softplus": lambda: sqrt_softplus(chosen),
        "identity": lambda: chosen,
        "relu": lambda: np.maximum(chosen, 0.0),
    }[rule["score"]]()
    return scores / (scores.sum() + rule["eps"]) if rule["renormalize"] else scores


def logsumexp(z: Array) -> float:
    top = z.max()
    return float(top) if math.isinf(top) else float(top + np.log(np.exp(z - top).sum()))


def gated(logits: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor | None, rule: dict[str, Any]) -> Expected:
    num_tokens, num_experts = logits.shape
    k, counts = rule["top_k"], [0] * num_experts
    index, weights, sums = [], np.zeros((num_tokens, k)), np.zeros(num_tokens)
    with np.errstate(all="ignore"):
        for token, row in enumerate(logits.double().numpy()):
            if mask is not None and not mask[token]:
                index.append([-1] * k)
                continue
            chosen = chosen_of(row.astype(f32), None if bias is None else bias.numpy(), rule)
            index.append(chosen)
            weights[token] = np.nan if np.isnan(row).any() else weights_of(row, chosen, rule)
            sums[token] = np.nan if np.isnan(row).any() else logsumexp(row)
            for expert in chosen:
                counts[expert] += 1
    return Expected(index, weights, counts, sums)


def distance_in_ulp(ours: Array, exact: Array, scale: float = 1.0) -> float:
    """The greatest distance of float32 weights to ``scale`` times the exact ones; NaN and infinities have to agree."""
    with np.errstate(all="ignore"):
        expected = exact.astype(f32) * f32(scale)
        same = (np.isnan(ours) & np.isnan(expected)) | (ours == expected)
        gap = np.abs(ours.astype(np.float64) - expected.astype(np.float64)) / np.spacing(np.abs(expected))
    return float(np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap)).max(initial=0.0))
