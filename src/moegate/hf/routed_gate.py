"""A gate of transformers that routes by a rule: its logits, moegate's fused gate, its answer to the block."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from moegate.extra import SharedWeights
from moegate.hf.derived import Derived
from moegate.hf.layers import MoELayer
from moegate.hf.logits import gate_logits, router_state
from moegate.noise import LearnedNoise
from moegate.records import Routing
from moegate.routing import route
from moegate.rule import RoutingRule
from moegate.selection import GroupedTopK, Hash, SoftSlots, SparseMixer, TopK

__all__ = ["RoutedGate", "Router", "leaves_slots_empty", "why_not_routed"]

_Answer = tuple[Tensor, ...]

_LEFT_ALONE = {
    "dbrx": "its gate makes logits only, and its block routes",
    "doge": "its gate scores product keys, and its block routes",
    "jetmoe": "its gate sorts the tokens itself",
    "nllb_moe": "its gate drops tokens beyond the experts' capacity by masks",
    "switch_transformers": "its gate drops tokens beyond the experts' capacity by masks",
    "vitpose_backbone": "it has no gate",
}
"""Families whose gate answers with something else than logits, weights and indices."""

_WEIGHTS_LIKE_HIDDEN_STATES = frozenset((
    "aria", "cohere2_moe", "deepseek_v4", "ernie4_5_moe", "ernie4_5_vl_moe", "flex_olmo", "gpt_oss", "granitemoe",
    "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "inkling", "jamba", "laguna",
    "lfm2_moe", "mellum", "mistral4", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe", "qwen3_moe", "qwen3_next",
    "qwen3_omni_moe", "qwen3_vl_moe", "qwen4_exp", "zaya",
))  # fmt: skip
"""Families whose gates round the weights to the type of the hidden states; the others leave them in float32."""

_WIDE_LOGITS = frozenset(("afmoe", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"))
"""Families whose gates answer with logits in float32, whatever type they were computed in."""


@dataclass(eq=False)
class Router:
    """How a gate routes.

    Attributes:
        layer: the layer of the gate.
        rule: the rule that it routes by.
        is_own: whether it is the rule that the layer came with.
        top_k: ``K`` of the layer when its own rule was read.
    """

    layer: MoELayer
    rule: RoutingRule
    is_own: bool
    top_k: int

    def follow(self) -> None:
        """Reads the layer's own rule again where somebody has changed the gate's ``top_k``, as the family's would."""
        if self.is_own and self.layer.top_k != self.top_k:
            self.layer = replace(self.layer)  # without what it remembers
            self.rule, self.top_k = self.layer.rule, self.layer.top_k


class RoutedGate(Derived):
    """The class in front of a gate's own: the same parameters, another way from logits to experts.

    It has no token mask: as in the model itself, padding is routed like any token. Of equal scores the lowest expert
    wins, on every device; the family's own ``torch.topk`` may choose any.
    """

    moegate_router: Router

    def forward(self, hidden_states: Tensor, *more: Tensor | None, **named: Tensor | None) -> _Answer:
        """What the family's block expects of its gate."""
        router = self.moegate_router
        router.follow()
        noise = router.rule.noise
        if noise is not None and self.training and not router.is_own:  # the noise of its own rule is the block's affair
            hidden_states = noise.on_hidden(hidden_states, None)
        logits_TE = gate_logits(router.layer, hidden_states, *more, **named)
        routing = _routing(router, logits_TE, more, self.training)
        answer = _ANSWERS.get(router.layer.family, _logits_weights_indices)
        return answer(_Call(router.layer, hidden_states, more, named), routing, logits_TE)


@dataclass(frozen=True, eq=False)
class _Call:
    """What a gate was called with."""

    layer: MoELayer
    hidden: Tensor
    more: tuple[Tensor | None, ...]
    named: dict[str, Tensor | None]

    def in_own_type(self, weights: Tensor) -> Tensor:
        """The weights in the type that the family's gate gives them in."""
        return weights.to(self.hidden.dtype) if self.layer.family in _WEIGHTS_LIKE_HIDDEN_STATES else weights


def _routing(router: Router, logits_TE: Tensor, more: tuple[Tensor | None, ...], training: bool) -> Routing:
    layer, by_token, scale = router.layer, isinstance(router.rule.selection, Hash), router.layer.expert_scale
    if scale is not None and isinstance(router.rule.extra, SharedWeights):
        scale = scale[:1].expand(logits_TE.shape[-1])  # one factor on all weights (Inkling)
    return route(
        logits_TE,
        router.rule,
        bias=layer.bias,
        training=training,
        expert_scale=scale,
        token_ids=more[0].reshape(-1) if by_token and more and more[0] is not None else None,
        hash_table=layer.hash_table if by_token else None,
    )


def _logits_weights_indices(call: _Call, routing: Routing, logits_TE: Tensor) -> _Answer:
    logits_TE = logits_TE.float() if call.layer.family in _WIDE_LOGITS else logits_TE
    return logits_TE, call.in_own_type(routing.weights), routing.expert_index.long()


def _probabilities_weights_indices(call: _Call, routing: Routing, logits_TE: Tensor) -> _Answer:
    _, weights_TK, index_TK = _logits_weights_indices(call, routing, logits_TE)
    return functional.softmax(logits_TE, dim=-1, dtype=torch.float32), weights_TK, index_TK


def _dense_scores_logits(_: _Call, routing: Routing, logits_TE: Tensor) -> _Answer:
    """``[T, E]`` with 0 where a token does not go (Llama 4)."""
    index_TK = routing.expert_index.long()
    kept_TK = routing.weights.masked_fill(index_TK < 0, 0.0).to(logits_TE.dtype)
    return torch.zeros_like(logits_TE).scatter_add(1, index_TK.clamp(min=0), kept_TK), logits_TE


def _with_shared_weights(call: _Call, routing: Routing, logits_TE: Tensor) -> _Answer:
    """With the weights of the shared experts, which are weighed together with the chosen ones (Inkling)."""
    assert routing.shared_weights is not None
    _, weights_TK, index_TK = _logits_weights_indices(call, routing, logits_TE)
    return logits_TE[:, : routing.num_experts], weights_TK, index_TK, call.in_own_type(routing.shared_weights)


def _with_next_state(call: _Call, routing: Routing, logits_TE: Tensor) -> _Answer:
    """With what the gate of the next layer reads; a token that skips goes to expert 0 with the weight 0 (ZAYA)."""
    _, weights_TK, index_TK = _logits_weights_indices(call, routing, logits_TE)
    return logits_TE, weights_TK, index_TK.clamp(min=0), router_state(call.layer, call.hidden, *call.more, **call.named)


_ANSWERS: dict[str, Callable[[_Call, Routing, Tensor], _Answer]] = {
    "gemma4": _probabilities_weights_indices,
    "diffusion_gemma": _probabilities_weights_indices,
    "inkling": _with_shared_weights,
    "llama4": _dense_scores_logits,
    "zaya": _with_next_state,
}
"""What the gates of some families answer in place of logits, weights and indices."""


def why_not_routed(layer: MoELayer, rule: RoutingRule | None) -> str:
    """Why the gate of a layer can't route by a rule, or by its own for None; empty where it can."""
    if layer.family in _LEFT_ALONE:
        return _LEFT_ALONE[layer.family]
    if "forward" in vars(layer.gate):
        return "its forward was replaced on the object, as offloading does: swap before that"
    if getattr(layer.gate, "input_jitter_noise", 0.0) > 0.0:
        return "its gate puts a noise on what the experts read (input_jitter_noise)"
    try:
        own = layer.rule
    except ValueError as error:
        return f"no rule expresses it ({error})"
    return "" if rule is None else _why_not_by(rule, own, layer)


def _why_not_by(rule: RoutingRule, own: RoutingRule, layer: MoELayer) -> str:
    """Why a gate that routes by one rule can't route by another."""
    if rule.extra != own.extra:
        return f"its logits are for extra={own.extra!r}, and those of the rule for extra={rule.extra!r}"
    if isinstance(rule.selection, SoftSlots) or isinstance(rule.noise, LearnedNoise):
        return f"a gate of transformers has no place for {rule!r}"
    try:
        rule.check(layer.num_experts)
    except ValueError as error:
        return str(error).rstrip(".")
    return ""


def leaves_slots_empty(rule: RoutingRule) -> bool:
    """Whether a rule may give a token fewer experts than slots, with -1 for the rest."""
    return rule.capacity is not None or not isinstance(rule.selection, TopK | GroupedTopK | Hash | SparseMixer)
