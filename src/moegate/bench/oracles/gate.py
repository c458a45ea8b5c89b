"""The gate: scores, selection and weights in float64; what is nearly tied may be chosen either way."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moegate.bench.cases import Verdict
from moegate.bench.oracles.closeness import Array, compare, float64

NEAR_TIE = 1e-6
"""Two scores closer than this, relative to 1, may swap: float32 rounds each of them by about a tenth of it."""
WEIGHT_TOLERANCE = 1e-5


class Chosen(NamedTuple):
    """What a gate returns: indices of any integer type, and weights."""

    index_TK: Tensor
    weights_TK: Tensor


@dataclass(frozen=True)
class GateRule:
    """The rule of a gate, in the words of ``topk_gate``.

    Example:
        >>> GateRule("softmax", top_k=8).renormalize
        True
    """

    score: str
    top_k: int
    biased: bool = False
    num_groups: int = 1
    groups_kept: int = 1
    renormalize: bool = True
    eps: float = 1e-20


def scores_of(kind: str, logits_TE: Array) -> Array:
    """Scores by their kind.

    Example:
        >>> scores_of("sigmoid", np.zeros((1, 2))).tolist()
        [[0.5, 0.5]]
    """
    if kind == "softmax":
        exponent_TE = np.exp(logits_TE - logits_TE.max(axis=-1, keepdims=True))
        scores_TE: Array = exponent_TE / exponent_TE.sum(axis=-1, keepdims=True)
        return scores_TE
    if kind == "sigmoid":
        return 1.0 / (1.0 + np.exp(-logits_TE))
    if kind == "sqrt_softplus":
        return np.sqrt(np.logaddexp(0.0, logits_TE))
    raise ValueError(f"The oracle knows no score {kind!r}.")


class GateOracle:
    """What a gate must choose, and the weights of whatever it chose.

    Example:
        >>> oracle = GateOracle(torch.tensor([[0.0, 1.0, 2.0]]), None, GateRule("sigmoid", top_k=1))
        >>> oracle.verdict(Chosen(torch.tensor([[2]]), torch.tensor([[1.0]])))
        >>> oracle.verdict(Chosen(torch.tensor([[1]]), torch.tensor([[1.0]])))
        'chose other experts for 1 of 1 tokens, one of them behind the right one by 1.0e+00'
    """

    def __init__(self, logits_TE: Tensor, bias_E: Tensor | None, rule: GateRule) -> None:
        self.rule = rule
        self.scores_TE = scores_of(rule.score, float64(logits_TE))
        # Without a bias the order is that of the logits, which differ where their scores hardly do.
        plain_TE = float64(logits_TE) if rule.num_groups == 1 else self.scores_TE
        ranking_TE = plain_TE if bias_E is None else self.scores_TE + float64(bias_E)
        self._ranking_TE, self._group_margin_T = _keep_groups(ranking_TE, rule)

    @cached_property
    def _least_T1(self) -> Array:
        """The ranking of the last expert that each token chooses."""
        k = self.rule.top_k
        least_T1: Array = -np.partition(-self._ranking_TE, k - 1, axis=-1)[:, k - 1 : k]
        return least_T1

    def weights(self, index_TK: NDArray[np.int64]) -> Array:
        """The weights of the given experts."""
        chosen_TK: Array = np.take_along_axis(self.scores_TE, index_TK, axis=-1)
        if self.rule.renormalize:
            chosen_TK = chosen_TK / (chosen_TK.sum(axis=-1, keepdims=True) + self.rule.eps)
        return chosen_TK

    def verdict(self, chosen: Chosen) -> Verdict:
        """The verdict on what a gate chose and on its weights."""
        index_TK = chosen.index_TK.numpy().astype(np.int64)
        return self._of_index(index_TK) or self._of_weights(index_TK, chosen.weights_TK)

    def _of_index(self, index_TK: NDArray[np.int64]) -> Verdict:
        num_tokens, num_experts = self.scores_TE.shape
        if index_TK.shape != (num_tokens, self.rule.top_k):
            return f"the index has shape {index_TK.shape} instead of {(num_tokens, self.rule.top_k)}"
        sorted_TK = np.sort(index_TK, axis=-1)
        if sorted_TK.size and (sorted_TK[:, 0].min() < 0 or sorted_TK[:, -1].max() >= num_experts):
            return "an index is no expert"
        if (np.diff(sorted_TK, axis=-1) == 0).any():
            return "a token has the same expert twice"
        # Distinct experts, none of them behind the last one to choose: then they are the right ones, ties aside.
        behind_TK = self._least_T1 - np.take_along_axis(self._ranking_TE, index_TK, axis=-1)
        wrong_T = (behind_TK > NEAR_TIE).any(axis=-1) & (self._group_margin_T > NEAR_TIE)
        if not wrong_T.any():
            return None
        return (
            f"chose other experts for {int(wrong_T.sum())} of {num_tokens} tokens, one of them behind the right one by "
            f"{behind_TK[wrong_T].max():.1e}"
        )

    def _of_weights(self, index_TK: NDArray[np.int64], weights_TK: Tensor) -> Verdict:
        expected_TK = self.weights(index_TK)
        if tuple(weights_TK.shape) != expected_TK.shape:
            return f"the weights have shape {tuple(weights_TK.shape)} instead of {expected_TK.shape}"
        error_TK = np.abs(float64(weights_TK) - expected_TK) / np.maximum(np.abs(expected_TK), 1e-30)
        worst = error_TK.max(initial=0.0)
        return None if worst <= WEIGHT_TOLERANCE else f"a weight is off by {worst:.1e} of itself"


def _keep_groups(ranking_TE: Array, rule: GateRule) -> tuple[Array, Array]:
    """The ranking with dropped groups at -inf, and per token how clear the choice of groups was."""
    if rule.num_groups == 1:
        return ranking_TE, np.full(len(ranking_TE), np.inf)
    grouped = ranking_TE.reshape(len(ranking_TE), rule.num_groups, -1)
    best_two = -np.partition(-grouped, 1, axis=-1)[..., :2]
    score_TG = best_two.sum(axis=-1)
    descending_TG = -np.sort(-score_TG, axis=-1)
    margin_T = descending_TG[:, rule.groups_kept - 1] - descending_TG[:, rule.groups_kept]
    kept_TG = score_TG >= descending_TG[:, rule.groups_kept - 1 : rule.groups_kept]
    return np.where(kept_TG[..., None], grouped, -np.inf).reshape(ranking_TE.shape), margin_T


def gate_gradient(logits_TE: Tensor, index_TK: Tensor, grad_weights_TK: Tensor, rule: GateRule) -> Array:
    """The gradient of the logits for one of the weights: the chain rule by hand, in float64.

    With ``w = s / (Σ s + eps)`` over the chosen, ``dL/ds = (g - Σ g w) / (Σ s + eps)``; a sigmoid has the slope
    ``s (1 - s)``, a softmax adds ``-s Σ (dL/ds · s)`` for every expert.

    Example:
        >>> logits, index = torch.zeros(1, 2), torch.tensor([[0, 1]])
        >>> gate_gradient(logits, index, torch.tensor([[1.0, 0.0]]), GateRule("sigmoid", top_k=2)).tolist()
        [[0.125, -0.125]]
    """
    index = index_TK.numpy().astype(np.int64)
    scores_TE = scores_of(rule.score, float64(logits_TE))
    chosen_TK = np.take_along_axis(scores_TE, index, axis=-1)
    grad_TK = float64(grad_weights_TK)
    if rule.renormalize:
        total_T1 = chosen_TK.sum(axis=-1, keepdims=True) + rule.eps
        grad_TK = (grad_TK - (grad_TK * chosen_TK / total_T1).sum(axis=-1, keepdims=True)) / total_T1
    grad_TE: Array = np.zeros_like(scores_TE)
    np.put_along_axis(grad_TE, index, grad_TK, axis=-1)
    if rule.score == "sigmoid":
        grad_TE *= scores_TE * (1.0 - scores_TE)
        return grad_TE
    if rule.score == "softmax":
        grad_TE -= (grad_TE * scores_TE).sum(axis=-1, keepdims=True)
        grad_TE *= scores_TE
        return grad_TE
    raise ValueError(f"The oracle knows no gradient of {rule.score!r}.")


def gradient_verdict(found_TE: Tensor, expected_TE: Array) -> Verdict:
    """The verdict on a gradient of the logits."""
    return compare("a gradient", found_TE, expected_TE, torch.float32)
