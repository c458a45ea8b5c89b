"""The gate: scores, selection and weights in float64; what is nearly tied may be chosen either way."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from moegate.bench.cases import Verdict
from moegate.bench.oracles.closeness import compare, float64

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


def scores_of(kind: str, logits_TE: Tensor) -> Tensor:
    """Scores by their kind.

    Example:
        >>> scores_of("sigmoid", torch.zeros(1, 2)).tolist()
        [[0.5, 0.5]]
    """
    if kind == "softmax":
        exponent_TE = (logits_TE - logits_TE.amax(dim=-1, keepdim=True)).exp()
        scores_TE: Tensor = exponent_TE / exponent_TE.sum(dim=-1, keepdim=True)
        return scores_TE
    if kind == "sigmoid":
        return 1.0 / (1.0 + (-logits_TE).exp())
    if kind == "sqrt_softplus":
        return torch.logaddexp(logits_TE.new_zeros(()), logits_TE).sqrt()
    raise ValueError(f"The oracle knows no score {kind!r}.")


class GateOracle:
    """What a gate must choose, and the weights of whatever it chose, in float64 on the device of the logits.

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
    def _least_T1(self) -> Tensor:
        """The ranking of the last expert that each token chooses."""
        k = self.rule.top_k
        return self._ranking_TE.sort(dim=-1, descending=True).values[:, k - 1 : k]

    def weights(self, index_TK: Tensor) -> Tensor:
        """The weights of the given experts."""
        chosen_TK = self.scores_TE.gather(1, index_TK)
        if self.rule.renormalize:
            chosen_TK = chosen_TK / (chosen_TK.sum(dim=-1, keepdim=True) + self.rule.eps)
        return chosen_TK

    def verdict(self, chosen: Chosen) -> Verdict:
        """The verdict on what a gate chose and on its weights."""
        index_TK = chosen.index_TK.long()
        return self._of_index(index_TK) or self._of_weights(index_TK, chosen.weights_TK)

    def _of_index(self, index_TK: Tensor) -> Verdict:
        num_tokens, num_experts = self.scores_TE.shape
        if index_TK.shape != (num_tokens, self.rule.top_k):
            return f"the index has shape {tuple(index_TK.shape)} instead of {(num_tokens, self.rule.top_k)}"
        sorted_TK = index_TK.sort(dim=-1).values
        if bool(((sorted_TK < 0) | (sorted_TK >= num_experts)).any()):
            return "an index is no expert"
        if bool((sorted_TK.diff(dim=-1) == 0).any()):
            return "a token has the same expert twice"
        # Distinct experts, none of them behind the last one to choose: then they are the right ones, ties aside.
        behind_TK = self._least_T1 - self._ranking_TE.gather(1, index_TK)
        wrong_T = (behind_TK > NEAR_TIE).any(dim=-1) & (self._group_margin_T > NEAR_TIE)
        if not bool(wrong_T.any()):
            return None
        return (
            f"chose other experts for {int(wrong_T.sum())} of {num_tokens} tokens, one of them behind the right one by "
            f"{behind_TK[wrong_T].max().item():.1e}"
        )

    def _of_weights(self, index_TK: Tensor, weights_TK: Tensor) -> Verdict:
        expected_TK = self.weights(index_TK)
        if weights_TK.shape != expected_TK.shape:
            return f"the weights have shape {tuple(weights_TK.shape)} instead of {tuple(expected_TK.shape)}"
        if weights_TK.numel() == 0:
            return None
        error_TK = (float64(weights_TK) - expected_TK).abs() / expected_TK.abs().clamp_min(1e-30)
        worst = error_TK.max().item()
        return None if worst <= WEIGHT_TOLERANCE else f"a weight is off by {worst:.1e} of itself"


def _keep_groups(ranking_TE: Tensor, rule: GateRule) -> tuple[Tensor, Tensor]:
    """The ranking with dropped groups at -inf, and per token how clear the choice of groups was."""
    if rule.num_groups == 1:
        return ranking_TE, ranking_TE.new_full((len(ranking_TE),), float("inf"))
    grouped = ranking_TE.reshape(len(ranking_TE), rule.num_groups, -1)
    score_TG = grouped.sort(dim=-1, descending=True).values[..., :2].sum(dim=-1)
    descending_TG = score_TG.sort(dim=-1, descending=True).values
    margin_T = descending_TG[:, rule.groups_kept - 1] - descending_TG[:, rule.groups_kept]
    kept_TG = score_TG >= descending_TG[:, rule.groups_kept - 1 : rule.groups_kept]
    return grouped.masked_fill(~kept_TG[..., None], float("-inf")).reshape(ranking_TE.shape), margin_T


def gate_gradient(logits_TE: Tensor, index_TK: Tensor, grad_weights_TK: Tensor, rule: GateRule) -> Tensor:
    """The gradient of the logits for one of the weights: the chain rule by hand, in float64.

    With ``w = s / (Σ s + eps)`` over the chosen, ``dL/ds = (g - Σ g w) / (Σ s + eps)``; a sigmoid has the slope
    ``s (1 - s)``, a softmax adds ``-s Σ (dL/ds · s)`` for every expert.

    Example:
        >>> logits, index = torch.zeros(1, 2), torch.tensor([[0, 1]])
        >>> gate_gradient(logits, index, torch.tensor([[1.0, 0.0]]), GateRule("sigmoid", top_k=2)).tolist()
        [[0.125, -0.125]]
    """
    index = index_TK.long()
    scores_TE = scores_of(rule.score, float64(logits_TE))
    chosen_TK = scores_TE.gather(1, index)
    grad_TK = float64(grad_weights_TK)
    if rule.renormalize:
        total_T1 = chosen_TK.sum(dim=-1, keepdim=True) + rule.eps
        grad_TK = (grad_TK - (grad_TK * chosen_TK / total_T1).sum(dim=-1, keepdim=True)) / total_T1
    grad_TE = torch.zeros_like(scores_TE).scatter_(1, index, grad_TK)
    if rule.score == "sigmoid":
        grad_TE *= scores_TE * (1.0 - scores_TE)
        return grad_TE
    if rule.score == "softmax":
        grad_TE -= (grad_TE * scores_TE).sum(dim=-1, keepdim=True)
        grad_TE *= scores_TE
        return grad_TE
    raise ValueError(f"The oracle knows no gradient of {rule.score!r}.")


def gradient_verdict(found_TE: Tensor, expected_TE: Tensor) -> Verdict:
    """The verdict on a gradient of the logits, by its type."""
    return compare("a gradient", found_TE, expected_TE, found_TE.dtype)
