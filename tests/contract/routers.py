"""Every recipe, fitted to 16 experts, and ``routed``, which hands each rule the inputs that it asks for."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from triton_support import ON_TRITON

import moegate
from moegate import recipes
from moegate.fusion import Fused, match
from moegate.noise import LearnedNoise
from moegate.records import Routing
from moegate.rule import RoutingRule
from moegate.selection import ExpertChoice, Hash, SoftSlots

NUM_EXPERTS = 16

RULES: dict[str, RoutingRule] = {name: recipes.get(name)() for name in recipes.names()} | {
    "deepseek_v2": recipes.deepseek_v2(3, num_groups=4, groups_kept=2),
    "deepseek_v3": recipes.deepseek_v3(3, num_groups=4, groups_kept=2),
    "soft_moe": recipes.soft_moe(slots_per_expert=2),
    "hash_routing": recipes.hash_routing(top_k=2),
    "gumbel_topk, relaxed": recipes.gumbel_topk(relaxed=True),
    "inkling": recipes.inkling(3, num_shared=2),
    "null experts": RoutingRule(
        moegate.selection.TopK(3), weighting=moegate.Weighting(renormalize=True), extra=moegate.extra.NullExperts(4)
    ),
    "null experts, composed": RoutingRule(
        moegate.selection.TopP(0.7),
        score=moegate.scoring.Sigmoid(),
        weighting=moegate.Weighting(renormalize=True, order=2.0),
        extra=moegate.extra.NullExperts(2),
    ),
    "shared weights": RoutingRule(
        moegate.selection.TopK(2), score=moegate.scoring.SoftmaxSelected(), extra=moegate.extra.SharedWeights(1)
    ),
    "product keys": RoutingRule(moegate.selection.ProductKeyTopK(3), score=moegate.scoring.SoftmaxSelected()),
    "norm": RoutingRule(
        moegate.selection.TopK(3),
        weighting=moegate.Weighting(renormalize=True, order=2.0, floor=1e-12),
        rank_by="biased_logits",
    ),
    "second choice, random": RoutingRule(
        moegate.selection.SecondChoice("random"), weighting=moegate.Weighting(renormalize=True)
    ),
    "second choice, sampling": RoutingRule(moegate.selection.SecondChoice("sampling")),
    "capacity after": RoutingRule(
        moegate.selection.TopK(2),
        weighting=moegate.Weighting(renormalize=True, floor=1e-7),
        capacity=moegate.Capacity(places=2, eval_factor=0.5, scope="sequence", weigh="after"),
    ),
    "identity": RoutingRule(moegate.selection.TopK(3), score=moegate.scoring.Identity()),
    "reroute": RoutingRule(
        moegate.selection.TopK(2),
        weighting=moegate.Weighting(renormalize=True),
        capacity=moegate.Capacity(1.0, overflow="reroute"),
    ),
}
"""Their selections need no more than 8 experts; ``soft_moe`` takes the 16 logits for 8 experts of 2 slots, ``product
keys`` for 64 experts, and those with extra classes for fewer experts."""


def one_of_each_call(rules: dict[str, RoutingRule]) -> dict[str, RoutingRule]:
    """The rules that are fused, one for each call of the gate but for K and the scale, of which its own tests try many.

    What else is in a rule is PyTorch's on every device.
    """
    found: dict[Fused, str] = {}
    for name, rule in rules.items():
        call = match(rule)
        if isinstance(call, Fused):
            found.setdefault(dataclasses.replace(call, top_k=1, scale=1.0), name)
    return {name: rules[name] for name in found.values()}


if ON_TRITON:
    RULES = one_of_each_call(RULES)


def is_row_wise(rule: RoutingRule) -> bool:
    """Whether a token's experts depend on nothing but the token."""
    return rule.capacity is None and not isinstance(rule.selection, ExpertChoice | SoftSlots)


def without_capacity(rule: RoutingRule) -> RoutingRule:
    return rule if rule.capacity is None else rule.replace(capacity=None)


ROW_WISE = {name: without_capacity(rule) for name, rule in RULES.items() if is_row_wise(without_capacity(rule))}
SPARSE = {name: rule for name, rule in RULES.items() if not isinstance(rule.selection, SoftSlots)}
FIXED_K = {
    name: rule
    for name, rule in ROW_WISE.items()
    if rule.extra is None
    and isinstance(
        rule.selection, moegate.selection.TopK | moegate.selection.GroupedTopK | moegate.selection.SparseMixer
    )
}


def routed(logits: Tensor, rule: RoutingRule, **inputs: Any) -> Routing:
    """``moegate.route``, with token ids for a hash and a noise scale for a learned noise."""
    if isinstance(rule.selection, Hash) and "token_ids" not in inputs:
        inputs["token_ids"] = torch.arange(logits[..., 0].numel()).view(logits.shape[:-1])
    if isinstance(inputs.get("bias"), Tensor):
        # One value for each class that is selected among.
        num_classes = rule.num_experts(NUM_EXPERTS) + (0 if rule.extra is None else rule.extra.num_null)
        inputs["bias"] = inputs["bias"].repeat(-(-num_classes // NUM_EXPERTS))[:num_classes]
    if isinstance(rule.noise, LearnedNoise) and inputs.get("training"):
        inputs.setdefault("noise_scale", torch.full_like(logits, 0.5))
    return moegate.route(logits, rule, **inputs)
