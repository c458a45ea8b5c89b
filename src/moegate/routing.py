"""``route``: logits and a rule in, a ``Routing`` out."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from moegate.arguments import (
    as_generator,
    check_logits,
    flat_expert_index,
    flat_mask,
    flat_token_ids,
    like_logits,
    per_expert,
)
from moegate.capacity import Capacity, reroute
from moegate.estimators import Relaxed
from moegate.extra import Extra
from moegate.fusion import Fused, operator_of
from moegate.noise import Noise
from moegate.ops.topk_gate import topk_gate
from moegate.parts import Part
from moegate.readings import ComputedReadings, DeferredReadings, FirstReadings, wide_logits
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
    expert_index: Tensor | None = None,
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
        expert_index: ``[..., K]`` integers, ``-1`` in an empty slot: the experts to route to, in place of the
            selection and of the capacity, as another run has recorded them (routing replay). All else is as ever:
            the weights and their gradients come from these logits by the rule, its noise and estimator included.

    Returns:
        A ``Routing``.

    Raises:
        TypeError, ValueError: when an argument does not fit; the message says what is expected. The numbers in
            ``expert_index``, ``token_ids`` and ``hash_table`` are checked on the CPU alone: elsewhere nothing is
            waited for, except by an expert choice, a rerouting capacity, and ``Routing.edges``.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[1.0, 3.0, 2.0]]), moegate.recipes.mixtral())
        >>> routing.expert_index.tolist(), round(routing.weights[0, 0].item(), 4)
        ([[1, 2]], 0.7311)
        >>> recorded = torch.tensor([[0, 2]])
        >>> moegate.route(torch.tensor([[1.0, 3.0, 2.0]]), moegate.recipes.mixtral(), expert_index=recorded).weights
        tensor([[0.2689, 0.7311]])
    """
    num_experts = _check_rule(rule, logits, training)
    if isinstance(rule.selection, SoftSlots) and not (bias is None and expert_scale is None):
        raise ValueError("Soft routing mixes by its logits alone: leave bias and expert_scale None.")
    batch_shape = tuple(logits.shape[:-1])
    source_TE = logits if logits.ndim == 2 else logits.reshape(math.prod(batch_shape), logits.shape[-1])
    mask_T = flat_mask(token_mask, batch_shape, logits)
    generator = as_generator(generator, logits.device)
    scale_TE = like_logits("noise_scale", noise_scale, source_TE, batch_shape)
    shared_TS, num_classes = None, num_experts
    if rule.extra is not None:
        num_classes += rule.extra.num_null
        if rule.extra.num_shared:
            source_TE, shared_TS = source_TE.tensor_split([-rule.extra.num_shared], dim=-1)
            scale_TE = None if scale_TE is None else scale_TE[:, : -rule.extra.num_shared]
            shared_TS = wide_logits(shared_TS, mask_T)
    source_TE = rule.selection.expert_logits(source_TE)
    noisy_TE = None
    if training and rule.noise is not None:
        noisy_TE, scale_TE = _noisy(rule.noise, wide_logits(source_TE, mask_T), scale_TE, generator)
    bias_E = per_expert("bias", bias, num_classes, source_TE)
    if bias_E is not None:
        # A balancer changes its bias in place; what is read from this routing later must be what it was made with.
        bias_E = (bias_E.detach() if bias_E.requires_grad else bias_E).clone()
    candidates = Candidates(
        num_experts=num_classes,
        readings=DeferredReadings(
            source_TE, mask_T, noisy_TE, rule.score, bias_E, rule.rank_by, torch.is_grad_enabled()
        ),
        noise_scale=scale_TE,
        token_mask=mask_T,
        batch_shape=batch_shape,
        training=training,
        generator=generator,
        token_ids=flat_token_ids(token_ids, batch_shape, logits),
        hash_table=hash_table,
        shared_logits=shared_TS,
    )
    expert_scale_E = None
    if expert_scale is not None:
        expert_scale_E = _scale_of_experts(expert_scale, rule.extra, num_experts, source_TE)
    if expert_index is not None:
        given_TK = flat_expert_index(expert_index, batch_shape, num_classes, source_TE)
        return _replayed(rule, candidates, expert_scale_E, given_TK)
    operator = operator_of(rule, training and rule.estimator is not None)
    # A gradient of float64 logits is one of research, in any order and by any transform: composed, it has them all.
    if isinstance(operator, Fused) and logits.dtype != torch.float64:
        return _fused(operator, rule, candidates, expert_scale_E)
    return _composed(rule, candidates, expert_scale_E)


def _noisy(
    noise: Noise, clean_TE: Tensor, scale_TE: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor | None, Tensor | None]:
    """The logits after noise, None if the noise was drawn elsewhere, and its standard deviation."""
    scale_TE = noise.standard_deviation(clean_TE, scale_TE)
    noisy_TE = noise.on_logits(clean_TE, scale_TE, generator)
    return None if noisy_TE is clean_TE else noisy_TE, scale_TE


def _fused(operator: Fused, rule: RoutingRule, candidates: Candidates, expert_scale_E: Tensor | None) -> Routing:
    """Scores, selection and weights in one pass over the logits."""
    readings = candidates.readings
    assert isinstance(readings, DeferredReadings)
    gated = topk_gate(
        readings.source if readings.noisy_logits is None else readings.noisy_logits,
        bias_E=readings.bias,
        token_mask_T=candidates.token_mask,
        top_k=operator.top_k,  # one by one: the compiler of PyTorch 2.11 can't look into vars(operator)
        score=operator.score,
        num_groups=operator.num_groups,
        groups_kept=operator.groups_kept,
        group_score=operator.group_score,
        renormalize=operator.renormalize,
        eps=operator.eps,
        scale=operator.scale,
        rank_by=operator.rank_by,
    )
    weights_TK = gated.weights
    if expert_scale_E is not None:
        weights_TK = _scaled_by_expert(weights_TK, expert_scale_E, gated.index)
    routing = _routing(candidates, gated.index, gated.index, weights_TK)
    if rule.extra is not None:
        routing = _without_nulls(rule.extra, routing)
    return routing if rule.capacity is None else _without_overflow(routing, rule.capacity, candidates)


def _composed(rule: RoutingRule, candidates: Candidates, expert_scale_E: Tensor | None) -> Routing:
    """Score, selection and weights by the parts of the rule, one after the other."""
    selected = rule.selection.select(candidates)
    mask_T = candidates.token_mask
    index_TK = selected.index if mask_T is None else selected.index.masked_fill(~mask_T[:, None], EMPTY)
    if selected.slots is not None and selected.weights is not None:
        return _soft_routing(candidates, selected, index_TK)
    assign = _assignment(rule, candidates, expert_scale_E, selected.weights)
    routing = _assigned(rule, candidates, index_TK, assign)
    if rule.capacity is None:
        return routing
    if rule.capacity.overflow == "drop":
        left = _without_overflow(routing, rule.capacity, candidates)
        if rule.capacity.weigh == "before":
            return left
        again = _assigned(rule, candidates, left.expert_index, assign)
        return replace(again, selected_index=routing.selected_index)
    return _rerouted(routing, rule.capacity, (candidates, selected), assign)


def _replayed(rule: RoutingRule, candidates: Candidates, expert_scale_E: Tensor | None, given_TK: Tensor) -> Routing:
    """The routing to given experts, weighted by the rule. They have been through a capacity, if there was one."""
    if candidates.training and isinstance(rule.estimator, Relaxed):
        raise ValueError(
            "expert_index has no meaning for the relaxed estimator, which sends every token to every expert in "
            "training: leave it None, or take the estimator out with rule.replace(estimator=None)."
        )
    selected = rule.selection.replay(candidates, given_TK)
    mask_T = candidates.token_mask
    index_TK = selected.index if mask_T is None else selected.index.masked_fill(~mask_T[:, None], EMPTY)
    assign = _assignment(rule, candidates, expert_scale_E, selected.weights)
    return _assigned(rule, candidates, index_TK, assign)


def _check_rule(rule: RoutingRule, logits: Tensor, training: bool) -> int:
    if not isinstance(rule, RoutingRule):
        raise TypeError(f"rule must be a RoutingRule, such as moegate.recipes.mixtral(); got {type(rule).__name__}.")
    check_logits(logits)
    count = _count_experts if torch.compiler.is_compiling() else _known_number
    num_experts = count(rule, logits.shape[-1])
    if training or logits.requires_grad:
        _warn_of_lost_gradient(rule)
    return num_experts


def _count_experts(rule: RoutingRule, num_logits: int) -> int:
    """Among how many experts the rule routes; raises when it can't."""
    num_experts = rule.num_experts(num_logits)
    rule.check(num_experts)
    return num_experts


_known_number = lru_cache(maxsize=1024)(_count_experts)

Assignment = Callable[[Tensor], tuple[Tensor, Tensor]]


def _assignment(
    rule: RoutingRule, candidates: Candidates, expert_scale_E: Tensor | None, own_TK: Tensor | None
) -> Assignment:
    """The function from chosen experts to the experts and weights that are carried out.

    ``own_TK`` are the raw weights of a selection that has its own.
    """

    logits_TE = candidates.logits
    if candidates.shared_logits is not None:
        logits_TE = torch.cat([logits_TE, candidates.shared_logits], dim=-1)

    def assign(index_TK: Tensor) -> tuple[Tensor, Tensor]:
        chosen_TK = None if own_TK is None else own_TK.masked_fill(index_TK < 0, 0.0)
        if chosen_TK is None and rule.score.elementwise:
            chosen_TK = rule.score.scores(gather_slots(logits_TE, index_TK, fill=0.0)).masked_fill(index_TK < 0, 0.0)
        elif chosen_TK is None:
            scores_TE = candidates.scores if candidates.shared_logits is None else rule.score.scores(logits_TE)
            chosen_TK = rule.score.weights(logits_TE, scores_TE, index_TK)
        weights_TK = rule.weighting.weigh(chosen_TK)
        if candidates.training and rule.estimator is not None:
            index_TK, weights_TK = rule.estimator.estimate(
                candidates.logits, candidates.scores, index_TK, weights_TK, rule.weighting
            )
        if expert_scale_E is not None:
            weights_TK = _scaled_by_expert(weights_TK, expert_scale_E, index_TK)
        # A score may look sound although a logit of its row is NaN; the weights must not.
        spoiled_T1 = logits_TE.detach().amax(dim=-1, keepdim=True).isnan()
        return index_TK, weights_TK.masked_fill(spoiled_T1, float("nan")).masked_fill(index_TK < 0, 0.0)

    return assign


def _assigned(rule: RoutingRule, candidates: Candidates, index_TK: Tensor, assign: Assignment) -> Routing:
    """The routing to chosen classes, before any dropping."""
    shared_TS = candidates.shared_logits
    if shared_TS is None:
        routing = _routing(candidates, index_TK, *assign(index_TK))
        return routing if rule.extra is None else _without_nulls(rule.extra, routing)
    # The shared experts stand behind the others, in slots that all real tokens fill.
    num_shared, mask_T = shared_TS.shape[1], candidates.token_mask
    shared_index_TS = torch.arange(num_shared, device=index_TK.device) + candidates.num_experts
    shared_index_TS = shared_index_TS.expand(index_TK.shape[0], num_shared)
    if mask_T is not None:
        shared_index_TS = shared_index_TS.masked_fill(~mask_T[:, None], EMPTY)
    _, joint_TK = assign(torch.cat([index_TK, shared_index_TS], dim=-1))
    weights_TK, weights_TS = joint_TK.tensor_split([index_TK.shape[1]], dim=-1)
    return replace(_routing(candidates, index_TK, index_TK, weights_TK), shared_weights=weights_TS)


def _without_nulls(extra: Extra, routing: Routing) -> Routing:
    """The routing with empty slots where a null class was chosen, and without a trace of these classes."""
    if not extra.num_null:
        return routing
    num_experts = routing.num_experts - extra.num_null
    null_TK = routing.expert_index >= num_experts
    scale_TE = routing.noise_scale
    return replace(
        routing,
        num_experts=num_experts,
        readings=FirstReadings(routing.readings, num_experts),
        expert_index=routing.expert_index.masked_fill(null_TK, EMPTY),
        weights=routing.weights.masked_fill(null_TK, 0.0),
        selected_index=routing.selected_index.masked_fill(routing.selected_index >= num_experts, EMPTY),
        noise_scale=None if scale_TE is None else scale_TE[:, :num_experts],
    )


def _scale_of_experts(expert_scale: Tensor, extra: Extra | None, num_experts: int, like: Tensor) -> Tensor | None:
    """A factor for every expert, and for extra classes that were given none, 1."""
    if extra is None:
        return per_expert("expert_scale", expert_scale, num_experts, like)
    all_classes = num_experts + extra.count
    if extra.num_shared and isinstance(expert_scale, Tensor) and tuple(expert_scale.shape) == (all_classes,):
        return per_expert("expert_scale", expert_scale, all_classes, like)
    scale_E = per_expert("expert_scale", expert_scale, num_experts, like)
    return None if scale_E is None else functional.pad(scale_E, (0, extra.count), value=1.0)


def _scaled_by_expert(weights_TK: Tensor, expert_scale_E: Tensor, index_TK: Tensor) -> Tensor:
    scale_TE = expert_scale_E.expand(index_TK.shape[0], expert_scale_E.shape[0])
    return weights_TK * gather_slots(scale_TE, index_TK, fill=0.0)


def _routing(candidates: Candidates, selected_TK: Tensor, expert_index_TK: Tensor, weights_TK: Tensor) -> Routing:
    return Routing(
        num_experts=candidates.num_experts,
        batch_shape=candidates.batch_shape,
        readings=candidates.readings,
        expert_index=expert_index_TK,
        weights=weights_TK,
        selected_index=selected_TK,
        token_mask=candidates.token_mask,
        noise_scale=candidates.noise_scale,
    )


def _soft_routing(candidates: Candidates, selected: Selected, index_TE: Tensor) -> Routing:
    assert selected.weights is not None
    ranking_TE = selected.weights.detach()
    readings = candidates.readings
    return Routing(
        num_experts=index_TE.shape[1],
        batch_shape=candidates.batch_shape,
        readings=ComputedReadings(
            readings.logits, selected.weights, ranking_TE, ranking_TE, noisy_logits=readings.noisy_logits
        ),
        expert_index=index_TE,
        weights=selected.weights,
        selected_index=index_TE,
        token_mask=candidates.token_mask,
        slots=selected.slots,
    )


def _within(routing: Routing, capacity: Capacity, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """Which slots find a place, the order in which they were asked, and the places of an expert."""
    order_N = capacity.assignment_order(routing, candidates.training, candidates.generator)
    kept_TK, limit = capacity.keep(routing, order_N, candidates.training)
    return kept_TK, order_N, limit


def _without_overflow(routing: Routing, capacity: Capacity, candidates: Candidates) -> Routing:
    """The routing without the assignments that find no place."""
    dropped_TK = ~_within(routing, capacity, candidates)[0]
    return routing.with_assignment(
        routing.expert_index.masked_fill(dropped_TK, EMPTY), routing.weights.masked_fill(dropped_TK, 0.0)
    )


def _rerouted(routing: Routing, capacity: Capacity, choice: tuple[Candidates, Selected], assign: Assignment) -> Routing:
    """The routing in which assignments without a place go to the next best expert that has one."""
    candidates, selected = choice
    index_TK = routing.expert_index
    kept_TK, order_N, limit = _within(routing, capacity, candidates)
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
