"""Which rules the fused gate serves: from a rule to a call of the operator ``topk_gate``, or to the reason why not.

Everything else is composed of the parts of the rule, one after the other.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from moegate.rule import RoutingRule
from moegate.scoring import Identity, ReLU, Sigmoid, Softmax, SoftmaxSelected, SqrtSoftplus
from moegate.selection import GroupedTopK, ProductKeyTopK, TopK

_SCORES = (Softmax, SoftmaxSelected, Sigmoid, SqrtSoftplus, Identity, ReLU)


@dataclass(frozen=True)
class Fused:
    """The call of ``topk_gate`` that routes by a rule; the fields are the operator's arguments."""

    top_k: int
    score: str
    num_groups: int
    groups_kept: int
    group_score: str
    renormalize: bool
    eps: float
    scale: float
    rank_by: str


@dataclass(frozen=True)
class Composed:
    """Why a rule is composed of its parts."""

    reason: str


def match(rule: RoutingRule, training: bool = False) -> Fused | Composed:
    """The call of the fused gate for a rule, or the reason why the rule is composed.

    Noise is drawn before the gate and a capacity that drops comes after it, so neither keeps a rule from being fused.

    Example:
        >>> import moegate
        >>> match(moegate.recipes.deepseek_v3()).score
        'sigmoid'
        >>> match(moegate.recipes.top_p())
        Composed(reason='TopP has no kernel')
    """
    reason = _why_composed(rule, training)
    if reason is not None:
        return Composed(reason)
    selection = rule.selection
    if type(selection) is TopK or type(selection) is ProductKeyTopK:
        groups = (1, 1, "max")
    elif type(selection) is GroupedTopK:
        groups = (selection.num_groups, selection.groups_kept, selection.group_score)
    else:
        return Composed(f"{type(selection).__name__} has no kernel")
    return Fused(
        selection.top_k,
        rule.score.kind,
        *groups,
        renormalize=rule.weighting.renormalize,
        eps=rule.weighting.eps,
        scale=rule.weighting.scale,
        rank_by="logits" if rule.rank_by == "biased_logits" else rule.rank_by,
    )


def _why_composed(rule: RoutingRule, training: bool) -> str | None:
    """What, beside the selection, the kernel does not do."""
    weighting, adds_to_scores = rule.weighting, type(rule.score) is not SoftmaxSelected
    selection = rule.selection
    obstacles = (
        (type(rule.score) not in _SCORES, f"{type(rule.score).__name__} scores have no kernel"),
        (
            training and rule.estimator is not None,
            f"{type(rule.estimator).__name__} estimates a gradient through the selection",
        ),
        (
            rule.capacity is not None and rule.capacity.overflow != "drop",
            "a capacity that reroutes weighs its experts anew",
        ),
        (
            rule.capacity is not None and rule.capacity.weigh == "after",
            "a capacity that weighs after dropping weighs anew",
        ),
        (
            rule.rank_by == "biased_logits" and adds_to_scores,
            "the kernel adds the bias to scores, not to logits",
        ),
        (
            weighting.renormalize and (weighting.order != 1.0 or weighting.floor > 0.0),
            "the kernel divides by the plain sum",
        ),
        (
            isinstance(selection, GroupedTopK) and selection.dropped_score is not None,
            "the kernel excludes the experts of dropped groups",
        ),
        (
            rule.extra is not None and rule.extra.num_shared > 0,
            "the kernel weighs no shared experts",
        ),
    )
    return next((reason for stands, reason in obstacles if stands), None)


def operator_of(rule: RoutingRule, training: bool) -> Fused | Composed:
    """``match``, remembered; a compiler traces the function itself and remembers by its own means."""
    return match(rule, training) if torch.compiler.is_compiling() else _remembered(rule, training)


_remembered = lru_cache(maxsize=1024)(match)
