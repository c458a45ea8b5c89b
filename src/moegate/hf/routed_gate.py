"""A gate of transformers that routes by a rule: its logits, moegate's fused gate, its answer to the block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moegate.hf.derived import Derived
from moegate.hf.layers import MoELayer
from moegate.hf.logits import gate_logits
from moegate.noise import LearnedNoise
from moegate.records import Routing
from moegate.routing import route
from moegate.rule import RoutingRule
from moegate.selection import GroupedTopK, Hash, SoftSlots, TopK

__all__ = ["RoutedGate", "Router", "leaves_slots_empty", "why_not_routed"]

_Answer = tuple[Tensor, ...]

_LEFT_ALONE = {
    "dbrx": "its gate makes logits only, and its block routes",
    "doge": "its gate scores product keys, and its block routes",
    "inkling": "its gate weighs the shared experts together with the others",
    "jetmoe": "its gate sorts the tokens itself",
    "nllb_moe": "its gate drops tokens beyond the experts' capacity by masks",
    "switch_transformers": "its gate drops tokens beyond the experts' capacity by masks",
    "vitpose_backbone": "it has no gate",
    "zaya": "its gate hands a state to the gate of the next layer",
}
"""Families whose gate answers with something else than logits, weights and indices."""

_WEIGHTS_LIKE_HIDDEN_STATES = frozenset((
    "aria", "cohere2_moe", "deepseek_v4", "ernie4_5_moe", "ernie4_5_vl_moe", "flex_olmo", "gpt_oss", "granitemoe",
    "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "jamba", "laguna", "lfm2_moe", "mellum",
    "mistral4", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe",
    "qwen3_vl_moe", "qwen4_exp",
))  # fmt: skip
"""Families whose gates round the weights to the type of the hidden states; the others leave them in float32."""

_WIDE_LOGITS = frozenset(("afmoe", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"))
"""Families whose gates answer with logits in float32, whatever type they were computed in."""


@dataclass(frozen=True, eq=False)
class Router:
    """How a gate routes: its layer, and the rule; ``is_own`` says whether it is the rule that the layer came with."""

    layer: MoELayer
    rule: RoutingRule
    is_own: bool


class RoutedGate(Derived):
    """The class in front of a gate's own: the same parameters, another way from logits to experts.

    It has no token mask: as in the model itself, padding is routed like any token. Of equal scores the lowest expert
    wins, on every device; the family's own ``torch.topk`` may choose any.
    """

    moegate_router: Router

    def forward(self, hidden_states: Tensor, *more: Tensor | None, **named: Tensor | None) -> _Answer:
        """What the family's block expects of its gate."""
        router = self.moegate_router
        noise = router.rule.noise
        if noise is not None and self.training and not router.is_own:  # the noise of its own rule is the block's affair
            hidden_states = noise.on_hidden(hidden_states, None)
        logits_TE = gate_logits(router.layer, hidden_states, *more, **named)
        routing = _routing(router, logits_TE, more, self.training)
        answer = _ANSWERS.get(router.layer.family, _logits_weights_indices)
        return answer(router.layer, hidden_states, routing, logits_TE)


def _routing(router: Router, logits_TE: Tensor, more: tuple[Tensor | None, ...], training: bool) -> Routing:
    layer, by_token = router.layer, isinstance(router.rule.selection, Hash)
    return route(
        logits_TE,
        router.rule,
        bias=layer.bias,
        training=training,
        expert_scale=layer.expert_scale,
        token_ids=more[0].reshape(-1) if by_token and more and more[0] is not None else None,
        hash_table=layer.hash_table if by_token else None,
    )


def _logits_weights_indices(layer: MoELayer, hidden: Tensor, routing: Routing, logits_TE: Tensor) -> _Answer:
    like_hidden = layer.family in _WEIGHTS_LIKE_HIDDEN_STATES
    weights_TK = routing.weights.to(hidden.dtype) if like_hidden else routing.weights
    logits_TE = logits_TE.float() if layer.family in _WIDE_LOGITS else logits_TE
    return logits_TE, weights_TK, routing.expert_index.long()


def _probabilities_weights_indices(layer: MoELayer, hidden: Tensor, routing: Routing, logits_TE: Tensor) -> _Answer:
    _, weights_TK, index_TK = _logits_weights_indices(layer, hidden, routing, logits_TE)
    return functional.softmax(logits_TE, dim=-1, dtype=torch.float32), weights_TK, index_TK


def _dense_scores_logits(layer: MoELayer, hidden: Tensor, routing: Routing, logits_TE: Tensor) -> _Answer:
    """``[T, E]`` with 0 where a token does not go (Llama 4)."""
    index_TK = routing.expert_index.long()
    kept_TK = routing.weights.masked_fill(index_TK < 0, 0.0).to(logits_TE.dtype)
    return torch.zeros_like(logits_TE).scatter_add(1, index_TK.clamp(min=0), kept_TK), logits_TE


_ANSWERS: dict[str, Callable[[MoELayer, Tensor, Routing, Tensor], _Answer]] = {
    "gemma4": _probabilities_weights_indices,
    "diffusion_gemma": _probabilities_weights_indices,
    "llama4": _dense_scores_logits,
}
"""What the gates of some families answer in place of logits, weights and indices."""


def why_not_routed(layer: MoELayer, rule: RoutingRule | None) -> str:
    """Why the gate of a layer can't route by a rule, or by its own for None; empty where it can."""
    if layer.family in _LEFT_ALONE:
        return _LEFT_ALONE[layer.family]
    if "forward" in vars(layer.gate):
        return "its forward was replaced on the object, as offloading does: swap before that"
    if rule is None:
        try:
            rule = layer.rule
        except ValueError as error:
            return f"no rule expresses it ({error})"
    try:
        rule.check(layer.num_experts)
    except ValueError as error:
        return str(error).rstrip(".")
    if isinstance(rule.selection, SoftSlots) or isinstance(rule.noise, LearnedNoise):
        return f"a gate of transformers has no place for {rule!r}"
    return ""


def leaves_slots_empty(rule: RoutingRule) -> bool:
    """Whether a rule may give a token fewer experts than slots, with -1 for the rest."""
    return rule.capacity is not None or not isinstance(rule.selection, TopK | GroupedTopK | Hash)
