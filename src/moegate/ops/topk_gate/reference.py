"""The reference: selection by the total order of ``ordered_topk``, then the formula of the weights. Plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor

from moegate.ops.ordered_topk.reference import ordered_topk_reference
from moegate.ops.portable.reference import portable_scores_reference
from moegate.ops.topk_gate.formula import weights_gradient, weights_of
from moegate.ops.topk_gate.options import Mode, Options, mode_of


class Statistics(NamedTuple):
    """What ``topk_gate_statistics`` returns; ``counts`` and ``logsumexp`` are empty unless the mode asks for them."""

    weights: Tensor
    index: Tensor  # type: ignore[assignment] # a tuple has a method of that name
    counts: Tensor
    logsumexp: Tensor
    chosen: Tensor


def gate(logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, options: Options) -> Statistics:
    """The whole gate. Differentiable as it stands: for float64, and under ``torch.func``."""
    mode = mode_of(options.mode)
    wide_TE = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
    masked_T = None if token_mask_T is None else ~token_mask_T
    if masked_T is not None:
        wide_TE = wide_TE.masked_fill(masked_T[:, None], 0.0)
    index_TK = _select(wide_TE.detach(), bias_E, options, mode)
    chosen_TK = wide_TE.gather(-1, index_TK).masked_fill(wide_TE.isnan().any(dim=-1, keepdim=True), torch.nan)
    logsumexp_T = log_total_T = wide_TE.new_zeros(0, dtype=torch.float64)
    shifted_TK = chosen_TK.double()
    if mode.with_logsumexp or mode.weight_score == "softmax":
        # Not by the logsumexp, in which a greatest logit of 1e17 swallows the total.
        greatest_T1 = wide_TE.detach().double().amax(dim=-1, keepdim=True).nan_to_num(posinf=0.0, neginf=0.0)
        log_total_T = (wide_TE.double() - greatest_T1).logsumexp(dim=-1)
        logsumexp_T = log_total_T + greatest_T1[:, 0]
        shifted_TK = shifted_TK - greatest_T1 if mode.weight_score == "softmax" else shifted_TK
    if masked_T is not None:
        index_TK = index_TK.masked_fill(masked_T[:, None], -1)
        logsumexp_T = logsumexp_T.masked_fill(masked_T, 0.0) if logsumexp_T.numel() else logsumexp_T
    weights_TK = weights_of(shifted_TK, log_total_T, index_TK < 0, options, mode).to(wide_TE.dtype)
    return Statistics(
        # The scale is a rounding of its own; it may be infinite, and 0 times that is NaN.
        weights=(weights_TK * options.scale).masked_fill(index_TK < 0, 0.0),
        index=index_TK.to(torch.int32 if mode.narrow_index else torch.int64),
        counts=count_of(index_TK, logits_TE.shape[-1] if mode.with_counts else 0),
        logsumexp=logsumexp_T if mode.with_logsumexp else logsumexp_T[:0],
        chosen=chosen_TK,
    )


def _select(logits_TE: Tensor, bias_E: Tensor | None, options: Options, mode: Mode) -> Tensor:
    """``[T, K]`` experts of all tokens, masked ones too."""
    ranks_scores = bias_E is not None or mode.ranks_scores
    grouped = options.groups_kept < options.num_groups
    scores_TE = logits_TE
    if ranks_scores or (grouped and mode.groups_by_top2_sum):
        scores_TE = selection_scores(logits_TE, mode.score)
        if bias_E is not None:
            scores_TE = scores_TE + bias_E.to(logits_TE.dtype)
    ranking_TE = scores_TE if ranks_scores else logits_TE
    dropped_TE = None
    if grouped:
        group_TG = _group_scores(scores_TE if mode.groups_by_top2_sum else ranking_TE, options.num_groups, mode)
        dropped_TG = torch.ones_like(group_TG, dtype=torch.bool)
        # Not in place: torch.vmap knows no other way.
        dropped_TG = dropped_TG.scatter(-1, ordered_topk_reference(group_TG, options.groups_kept), False)
        dropped_TE = dropped_TG.repeat_interleave(logits_TE.shape[-1] // options.num_groups, dim=-1)
    return ordered_topk_reference(ranking_TE, options.top_k, excluded=dropped_TE)


def selection_scores(logits_TE: Tensor, score: str) -> Tensor:
    """What a bias is added to: the scores, or the logits where the softmax comes after the selection."""
    if score in ("identity", "softmax_selected"):
        return logits_TE
    return logits_TE.relu() if score == "relu" else portable_scores_reference(logits_TE, score)


def _group_scores(values_TE: Tensor, num_groups: int, mode: Mode) -> Tensor:
    values_TGe: Tensor = values_TE.unflatten(-1, (num_groups, -1))
    values_TGe = values_TGe.masked_fill(values_TGe.isnan(), float("-inf"))
    return values_TGe.topk(2 if mode.groups_by_top2_sum else 1, dim=-1).values.sum(dim=-1)


def count_of(index_TK: Tensor, num_experts: int) -> Tensor:
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=index_TK.device)
    if num_experts == 0:
        return counts_E
    index_N = index_TK.reshape(-1)
    return counts_E.scatter_add(0, index_N.clamp(min=0), (index_N >= 0).to(torch.int64))


def topk_gate_statistics_reference(  # noqa: PLR0913, PLR0917 - the schema of the operator
    logits_TE: Tensor,
    bias_E: Tensor | None,
    token_mask_T: Tensor | None,
    top_k: int,
    num_groups: int,
    groups_kept: int,
    eps: float,
    scale: float,
    mode: int,
) -> Statistics:
    return gate(logits_TE, bias_E, token_mask_T, Options(top_k, num_groups, groups_kept, eps, scale, mode))


def topk_gate_reference(  # noqa: PLR0913, PLR0917 - the schema of the operator
    logits_TE: Tensor,
    bias_E: Tensor | None,
    token_mask_T: Tensor | None,
    top_k: int,
    num_groups: int,
    groups_kept: int,
    eps: float,
    scale: float,
    mode: int,
) -> tuple[Tensor, Tensor]:
    statistics = gate(logits_TE, bias_E, token_mask_T, Options(top_k, num_groups, groups_kept, eps, scale, mode))
    return statistics.weights, statistics.index


def topk_gate_backward_reference(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_weights_TK: Tensor | None,
    grad_logsumexp_T: Tensor | None,
    grad_chosen_TK: Tensor | None,
    index_TK: Tensor,
    chosen_TK: Tensor,
    logsumexp_T: Tensor,
    logits_TE: Tensor | None,
    num_experts: int,
    dtype: torch.dtype,
    eps: float,
    scale: float,
    mode: int,
) -> Tensor:
    """The gradient of the logits; differentiable with respect to all that is floating point."""
    choice = mode_of(mode)
    options = Options(index_TK.shape[-1], 1, 1, eps, scale, mode)
    empty_TK = index_TK < 0
    total_TK = torch.zeros_like(chosen_TK, dtype=torch.float64)
    if grad_weights_TK is not None:
        from_weights_TK, from_total_T = weights_gradient(grad_weights_TK, chosen_TK, logsumexp_T, options, choice)
        total_TK = total_TK + from_weights_TK
        if from_total_T is not None:
            grad_logsumexp_T = from_total_T if grad_logsumexp_T is None else grad_logsumexp_T + from_total_T
    if grad_chosen_TK is not None:
        total_TK = total_TK + grad_chosen_TK
    total_TK = total_TK.masked_fill(empty_TK, 0.0)
    grad_TE = total_TK.new_zeros(index_TK.shape[0], num_experts)
    # An empty slot adds nothing to expert 0.
    grad_TE = grad_TE.scatter_add(-1, index_TK.to(torch.int64).clamp(min=0), total_TK)
    if grad_logsumexp_T is not None and logits_TE is not None:
        probabilities_TE = (logits_TE.double() - logsumexp_T[:, None]).exp()
        dense_TE = grad_logsumexp_T[:, None] * probabilities_TE
        grad_TE = grad_TE + dense_TE.masked_fill(empty_TK.all(dim=-1, keepdim=True), 0.0)
    return grad_TE.to(dtype)
