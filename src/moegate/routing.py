"""``route``: logits and a rule in, a ``Routing`` out."""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from moegate.arguments import as_generator, check_logits, flat_mask, flat_token_ids, like_logits, per_expert
from moegate.capacity import Capacity, keep_within, reroute
from moegate.parts import Part
from moegate.records import EMPTY, Routing
from moegate.rule import RoutingRule
from moegate.scoring import Constant, SoftmaxSelected, gather_slots
from moegate.selection import Candidates, GroupedTopK, Selected, SoftSlots, TopK


def route(  # noqa: PLR0913 - one optional input per part of a rule
    logits: Tensor,
    rule: RoutingRule,
    *,
    bias: Tensor | None = None,
    token_mask: Tensor | None = None,
    training: bool = False,
    generator: torch.Generator | int | None = None,
    noise_scale: Tensor | None = None,
    expert_scale: Tensor | None = None,
    token_ids: Tensor | None = None,
    hash_table: Tensor | None = None,
) -> Routing:
    """Routes tokens by a rule.

    Args:
        logits: ``[..., E]`` floating point; the leading dimensions are flattened to tokens. Computed in float32;
            float64 stays float64.
        rule: how to route; see ``moegate.recipes`` for the published ones.
        bias: ``[E]`` float32, added for the selection only: the weights never see it.
        token_mask: bool, one value per token, True for a real token. Masked tokens get no expert and count nowhere.
        training: whether noise, random choices and estimators act. Evaluation draws nothing.
        generator: where random numbers come from. An integer is a seed for this call alone, so that a recomputed
            forward draws the same; None is PyTorch's default generator, which activation checkpointing restores.
        noise_scale: like ``logits``: the standard deviation of a learned noise.
        expert_scale: ``[E]``, a factor on each expert's weight, applied last; it may be a parameter.
        token_ids: one integer per token, for hash routing.
        hash_table: ``[V, K]`` integers, the experts of each token id.

    Returns:
        A ``Routing``.

    Raises:
        TypeError, ValueError: when an argument does not fit; the message says what is expected.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[1.0, 3.0, 2.0]]), moegate.recipes.mixtral())
        >>> routing.expert_index.tolist(), round(routing.weights[0, 0].item(), 4)
        ([[1, 2]], 0.7311)
    """
    num_experts = _check_rule(rule, logits, training)
    if isinstance(rule.selection, SoftSlots) and not (bias is None and expert_scale is None):
        raise ValueError("Soft routing mixes by its logits alone: leave bias and expert_scale None.")
    batch_shape = tuple(logits.shape[:-1])
    mask_T = flat_mask(token_mask, batch_shape, logits)
    logits_TE = _flat_logits(logits, mask_T)
    generator = as_generator(generator, logits.device)
    scale_TE = like_logits("noise_scale", noise_scale, logits_TE, batch_shape)
    noisy_TE = logits_TE
    if training and rule.noise is not None:
        scale_TE = rule.noise.standard_deviation(logits_TE, scale_TE)
        noisy_TE = rule.noise.on_logits(logits_TE, scale_TE, generator)
    scores_TE = rule.score.scores(noisy_TE)
    bias_E = per_expert("bias", bias, num_experts, logits_TE)
    selection_scores_TE, ranking_TE = _rankings(rule, noisy_TE, scores_TE, bias_E)
    candidates = Candidates(
        clean_logits=logits_TE,
        noise_scale=scale_TE,
        logits=noisy_TE,
        scores=scores_TE,
        shares=rule.score.shares(noisy_TE, scores_TE),
        selection_scores=selection_scores_TE,
        ranking=ranking_TE,
        token_mask=mask_T,
        batch_shape=batch_shape,
        training=training,
        generator=generator,
        token_ids=flat_token_ids(token_ids, batch_shape, logits),
        hash_table=hash_table,
    )
    selected = rule.selection.select(candidates)
    index_TK = selected.index if mask_T is None else selected.index.masked_fill(~mask_T[:, None], EMPTY)
    if selected.slots is not None and selected.weights is not None:
        return _soft_routing(candidates, selected, index_TK)
    assign = _assignment(rule, candidates, per_expert("expert_scale", expert_scale, num_experts, logits_TE))
    routing = _sparse_routing(candidates, index_TK, assign)
    return routing if rule.capacity is None else _limited(routing, rule.capacity, (candidates, selected), assign)


def _check_rule(rule: RoutingRule, logits: Tensor, training: bool) -> int:
    if not isinstance(rule, RoutingRule):
        raise TypeError(f"rule must be a RoutingRule, such as moegate.recipes.mixtral(); got {type(rule).__name__}.")
    check_logits(logits)
    num_experts = rule.selection.num_experts(logits.shape[-1])
    rule.check(num_experts)
    if training or logits.requires_grad:
        _warn_of_lost_gradient(rule)
    return num_experts


def _flat_logits(logits: Tensor, mask_T: Tensor | None) -> Tensor:
    """``[T, E]`` in float32 or float64. Masked rows become 0: whatever padding holds must not reach a gradient."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logits_TE = wide.reshape(math.prod(logits.shape[:-1]), logits.shape[-1]).contiguous()
    return logits_TE if mask_T is None else logits_TE.masked_fill(~mask_T[:, None], 0.0)


def _rankings(rule: RoutingRule, noisy_TE: Tensor, scores_TE: Tensor, bias_E: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a threshold or a sum of scores looks at, and what experts are ordered by."""
    selection_scores_TE = rule.score.selection_scores(noisy_TE, scores_TE).detach()
    if bias_E is not None:
        biased_TE = selection_scores_TE + bias_E.detach()
        return biased_TE, biased_TE
    by_logits = rule.rank_by == "logits" and rule.score.monotone
    return selection_scores_TE, noisy_TE.detach() if by_logits else selection_scores_TE


Assignment = Callable[[Tensor], tuple[Tensor, Tensor]]


def _assignment(rule: RoutingRule, candidates: Candidates, expert_scale_E: Tensor | None) -> Assignment:
    """The function from chosen experts to the experts and weights that are carried out."""

    def assign(index_TK: Tensor) -> tuple[Tensor, Tensor]:
        chosen_TK = rule.score.weights(candidates.logits, candidates.scores, index_TK)
        weights_TK = rule.weighting.weigh(chosen_TK)
        if candidates.training and rule.estimator is not None:
            index_TK, weights_TK = rule.estimator.estimate(
                candidates.logits, candidates.scores, index_TK, weights_TK, rule.weighting
            )
        if expert_scale_E is not None:
            scale_TE = expert_scale_E.expand_as(candidates.scores)
            weights_TK = weights_TK * gather_slots(scale_TE, index_TK, fill=0.0)
        # A score may look sound although a logit of its row is NaN; the weights must not.
        spoiled_T1 = candidates.logits.isnan().any(dim=-1, keepdim=True)
        return index_TK, weights_TK.masked_fill(spoiled_T1, float("nan")).masked_fill(index_TK < 0, 0.0)

    return assign


def _sparse_routing(candidates: Candidates, index_TK: Tensor, assign: Assignment) -> Routing:
    expert_index_TK, weights_TK = assign(index_TK)
    return Routing(
        num_experts=candidates.scores.shape[1],
        batch_shape=candidates.batch_shape,
        logits=candidates.clean_logits,
        scores=candidates.scores,
        selection_scores=candidates.selection_scores,
        ranking=candidates.ranking,
        expert_index=expert_index_TK,
        weights=weights_TK,
        selected_index=index_TK,
        token_mask=candidates.token_mask,
        noisy_logits=None if candidates.logits is candidates.clean_logits else candidates.logits,
        shares=None if candidates.shares is candidates.scores else candidates.shares,
        noise_scale=candidates.noise_scale,
    )


def _soft_routing(candidates: Candidates, selected: Selected, index_TE: Tensor) -> Routing:
    assert selected.weights is not None
    ranking_TE = selected.weights.detach()
    return Routing(
        num_experts=index_TE.shape[1],
        batch_shape=candidates.batch_shape,
        logits=candidates.clean_logits,
        scores=selected.weights,
        selection_scores=ranking_TE,
        ranking=ranking_TE,
        expert_index=index_TE,
        weights=selected.weights,
        selected_index=index_TE,
        token_mask=candidates.token_mask,
        noisy_logits=None if candidates.logits is candidates.clean_logits else candidates.logits,
        slots=selected.slots,
    )


def _limited(routing: Routing, capacity: Capacity, choice: tuple[Candidates, Selected], assign: Assignment) -> Routing:
    """The routing after a capacity: assignments without a place are dropped, or go elsewhere."""
    candidates, selected = choice
    index_TK = routing.expert_index
    # Assignments are real tokens times k, and the same count serves routers whose k differs from token to token.
    limit = capacity.limit_of_assignments((index_TK >= 0).sum(), routing.num_experts)
    order_N = capacity.assignment_order(routing, candidates.training, candidates.generator)
    kept_TK = keep_within(index_TK, order_N, limit.expand(routing.num_experts))
    if capacity.overflow == "drop":
        dropped_TK = ~kept_TK
        return routing.with_assignment(
            index_TK.masked_fill(dropped_TK, EMPTY), routing.weights.masked_fill(dropped_TK, 0.0)
        )
    # An expert that the selection ruled out, or that -inf masks, is no way out either.
    excluded_TE = routing.ranking == float("-inf")
    if selected.excluded is not None:
        excluded_TE = excluded_TE | selected.excluded
    final_TK = reroute(index_TK, kept_TK, routing.ranking, order_N, limit, excluded_TE)
    # The weights are those of the experts that are asked now; what found no room keeps its share and is lost.
    _, weights_TK = assign(torch.where(final_TK < 0, index_TK, final_TK))
    return routing.with_assignment(final_TK, weights_TK.masked_fill(final_TK < 0, 0.0))


def _warn_of_lost_gradient(rule: RoutingRule) -> None:
    if not torch.compiler.is_compiling() and _gradient_is_lost(rule):
        _warn_once(rule)


def _gradient_is_lost(rule: RoutingRule) -> bool:
    """Whether a single expert's weight is always 1, so that the router learns nothing from the model's loss."""
    single = isinstance(rule.selection, TopK | GroupedTopK) and rule.selection.top_k == 1
    constant = rule.weighting.renormalize or isinstance(rule.score, SoftmaxSelected)
    return single and constant and rule.estimator is None and not isinstance(rule.score, Constant)


@lru_cache(maxsize=256)
def _warn_once(rule: Part) -> None:
    warnings.warn(
        f"{rule!r} gives its one expert the weight 1 whatever the logits are, so the router gets no gradient from the "
        "model's loss. Choose Weighting(renormalize=False) as Switch does, top_k of 2 or more, or the StraightThrough "
        "estimator.",
        UserWarning,
        stacklevel=5,
    )
