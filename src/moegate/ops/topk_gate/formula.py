"""The weights as a function of the chosen logits, and its gradient: plain PyTorch, differentiable as often as asked.

A weight looks at the chosen logits of its token and, for a softmax over all experts, at one number more, their
logsumexp. So nothing of the size of all experts is needed for its gradient.
"""

import torch
from torch import Tensor

from moegate.ops.portable import portable_sqrt_softplus
from moegate.ops.topk_gate.options import Mode, Options

_TAIL = -40.0  # below it log(1 + exp(z)) is exp(z)


def weights_of(chosen_TK: Tensor, logsumexp_T: Tensor, empty_TK: Tensor, options: Options, mode: Mode) -> Tensor:
    """``[T, K]`` float64 weights before the scale; 0 in empty slots."""
    score_TK = _scores(chosen_TK.double(), logsumexp_T, mode.weight_score)
    if mode.renormalize:
        score_TK = score_TK / (score_TK.sum(dim=-1, keepdim=True) + options.eps)
    return score_TK.masked_fill(empty_TK, 0.0)


def weights_gradient(
    grad_TK: Tensor, chosen_TK: Tensor, logsumexp_T: Tensor, options: Options, mode: Mode
) -> tuple[Tensor, Tensor | None]:
    """The gradient with respect to the chosen logits and to the logsumexp, given that of the weights; in float64."""
    chosen_TK, grad_TK = chosen_TK.double(), grad_TK.double() * options.scale
    score_TK = _scores(chosen_TK, logsumexp_T, mode.weight_score)
    if mode.renormalize:
        # w = s / (Σ s + eps), so dw_j / ds_i = (δ_ij - w_j) / (Σ s + eps).
        divisor_T1 = score_TK.sum(dim=-1, keepdim=True) + options.eps
        grad_TK = (grad_TK - (grad_TK * (score_TK / divisor_T1)).sum(dim=-1, keepdim=True)) / divisor_T1
    if mode.weight_score == "softmax":
        grad_chosen_TK = grad_TK * score_TK
        return grad_chosen_TK, -grad_chosen_TK.sum(dim=-1)
    if mode.weight_score == "softmax_selected":
        return score_TK * (grad_TK - (grad_TK * score_TK).sum(dim=-1, keepdim=True)), None
    return _times_slope(grad_TK, chosen_TK, score_TK, mode.weight_score), None


def _scores(z: Tensor, logsumexp_T: Tensor, score: str) -> Tensor:
    if score == "softmax":
        # A row with +inf, or of -inf alone, has no softmax.
        return (z - logsumexp_T.masked_fill(logsumexp_T.isinf(), torch.nan)[:, None]).exp()
    if score == "softmax_selected":
        return z.softmax(dim=-1)
    if score == "sigmoid":
        return z.sigmoid()
    if score == "sqrt_softplus":
        return portable_sqrt_softplus(z)
    return z.relu() if score == "relu" else z


def _times_slope(grad: Tensor, z: Tensor, scores: Tensor, score: str) -> Tensor:
    if score == "sigmoid":
        return grad * (scores * (-z).sigmoid())
    if score == "sqrt_softplus":
        # sigmoid(z) / (2 s); in the tail both are exp(z), and s its root.
        in_tail = z < _TAIL
        return grad * torch.where(in_tail, scores / 2, z.sigmoid() / (2 * scores.masked_fill(in_tail, 1.0)))
    return torch.where(z <= 0, 0.0, grad) if score == "relu" else grad
