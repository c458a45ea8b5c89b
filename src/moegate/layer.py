"""The Mixture-of-Experts layer: route, dispatch, experts, combine."""

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from moegate.arguments import as_generator, check_hidden, flat_mask
from moegate.dispatch import METHODS, combine, dispatch
from moegate.experts import Experts, SharedExperts
from moegate.gates import Gate, LinearGate, NoisyLinearGate
from moegate.noise import LearnedNoise
from moegate.ops import mixture
from moegate.ops.library import served_by_triton
from moegate.parts import check_choice, check_integer
from moegate.precision import in_autocast
from moegate.records import Routing
from moegate.routing import route
from moegate.rule import RoutingRule
from moegate.selection import SoftSlots

__all__ = ["MoE"]


class MoE(nn.Module):
    """A sparse feed-forward layer that returns ``(out, routing)``.

    Losses, balancers and metrics are functions of the routing; the layer keeps no statistics, so a forward that
    activation checkpointing recomputes counts nothing twice.

    Args:
        hidden_size: ``D``.
        intermediate_size: ``F`` of each expert.
        num_experts: ``E``.
        rule: how to route; the attribute may be set anew at any time (annealing, another k).
        gate: hidden states to logits; by default a ``LinearGate``, or a ``NoisyLinearGate`` for a learned noise.
        activation: of the experts: ``swiglu``, ``geglu``, ``gelu``, ``relu2``, ``relu`` or ``silu``.
        num_shared_experts: experts of the same size that every token goes to; 0 for none.
        correction_bias: gives the default gate an ``e_score_correction_bias`` for a balance controller.
        expert_scale: adds a trained factor per expert, ``expert_scale [E]``, on the weights (Gemma 4).
        dispatch: ``"sorted"`` (dropless), ``"padded"`` (equal rows per expert) or ``"dense"`` (the readable oracle).

    Shapes: hidden ``[..., D]`` → out ``[..., D]``; the leading dimensions are the tokens.

    Raises:
        TypeError, ValueError: when sizes, rule and gate do not go together.

    Example:
        >>> import torch, moegate
        >>> moe = moegate.MoE(16, 32, num_experts=8, rule=moegate.recipes.mixtral())
        >>> out, routing = moe(torch.randn(2, 5, 16))
        >>> out.shape, routing.load.sum().item()
        (torch.Size([2, 5, 16]), 20)
    """

    def __init__(  # noqa: PLR0913 - the sizes and the parts of a layer, each with a default
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        rule: RoutingRule | None = None,
        *,
        gate: Gate | None = None,
        activation: str = "swiglu",
        num_shared_experts: int = 0,
        correction_bias: bool = False,
        expert_scale: bool = False,
        dispatch: str = "sorted",
    ) -> None:
        super().__init__()
        check_choice("dispatch", dispatch, METHODS)
        check_integer("num_shared_experts", num_shared_experts, least=0)
        self.rule = RoutingRule() if rule is None else rule
        if not isinstance(self.rule, RoutingRule):
            raise TypeError(f"rule must be a RoutingRule, such as moegate.recipes.mixtral(); got {rule!r}.")
        self.rule.check(num_experts)
        if gate is not None and correction_bias:
            raise ValueError("correction_bias goes to the default gate: give your gate correction_bias=True instead.")
        if isinstance(self.rule.selection, SoftSlots) and (correction_bias or expert_scale):
            raise ValueError("Soft routing mixes by its logits alone: leave correction_bias and expert_scale False.")
        num_logits = self.rule.num_logits(num_experts)
        num_weighed = 0 if self.rule.extra is None else self.rule.extra.num_shared
        if num_weighed not in {0, num_shared_experts}:
            raise ValueError(
                f"{self.rule.extra!r} weighs {num_weighed} shared experts, but num_shared_experts={num_shared_experts}."
            )
        if gate is None:
            default = NoisyLinearGate if isinstance(self.rule.noise, LearnedNoise) else LinearGate
            num_biased = self.rule.num_classes(num_experts) if correction_bias else 0
            gate = default(hidden_size, num_logits, correction_bias=num_biased)
        _check_gate(gate, self.rule, hidden_size, num_logits)
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.gate = gate
        self.experts = Experts(num_experts, hidden_size, intermediate_size, activation)
        self.shared_experts = (
            SharedExperts(hidden_size, num_shared_experts * intermediate_size, activation)
            if num_shared_experts
            else None
        )
        self.expert_scale = nn.Parameter(torch.ones(num_experts)) if expert_scale else None
        self.dispatch = dispatch

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as after construction; for a layer that was made on the meta device."""
        self.gate.reset_parameters()
        self.experts.reset_parameters()
        if self.shared_experts is not None:
            self.shared_experts.reset_parameters()
        if self.expert_scale is not None:
            nn.init.ones_(self.expert_scale)

    def forward(
        self,
        hidden: Tensor,
        *,
        token_mask: Tensor | None = None,
        token_ids: Tensor | None = None,
        hash_table: Tensor | None = None,
        expert_index: Tensor | None = None,
        previous: Routing | None = None,
        generator: Generator | int | None = None,
    ) -> tuple[Tensor, Routing]:
        """Routes the tokens, runs their experts and sums the results.

        Args:
            hidden: ``[..., D]``.
            token_mask: bool, one per token, True for a real token. Masked tokens give 0 and count nowhere.
            token_ids: one integer per token, for hash routing.
            hash_table: ``[V, K]``, the experts of each token id.
            expert_index: ``[..., K]``, the experts to route to in place of the rule's selection; see ``route``.
            previous: the routing of the layer before, for a gate that reads it (``ResidualGate``).
            generator: for noise and random choices in training; see ``route``.

        Returns:
            ``(out [..., D], routing)``.
        """
        hidden = self._without_padding(hidden, token_mask)
        tokens_TD = hidden.reshape(-1, hidden.shape[-1])
        routing = self.route(
            hidden,
            token_mask=token_mask,
            token_ids=token_ids,
            hash_table=hash_table,
            expert_index=expert_index,
            previous=previous,
            generator=generator,
        )
        out_TD = self._mixture(tokens_TD, routing)
        if self.shared_experts is not None:
            out_TD = out_TD + self.shared_experts(tokens_TD, routing.shared_weights)
        return out_TD.view(hidden.shape), routing

    def route(
        self,
        hidden: Tensor,
        *,
        token_mask: Tensor | None = None,
        token_ids: Tensor | None = None,
        hash_table: Tensor | None = None,
        expert_index: Tensor | None = None,
        previous: Routing | None = None,
        generator: Generator | int | None = None,
    ) -> Routing:
        """The routing alone, without running an expert; the arguments are those of ``forward``."""
        if not (previous is None or isinstance(previous, Routing)):
            raise TypeError(f"previous must be the Routing of the layer before, got {type(previous).__name__}.")
        seen = self._without_padding(hidden, token_mask)
        if self.training and self.rule.noise is not None:
            seen = self.rule.noise.on_hidden(seen, as_generator(generator, hidden.device))
        return route(
            self.gate(seen, None if previous is None else previous.logits),
            self.rule,
            bias=self.gate.e_score_correction_bias,
            token_mask=token_mask,
            training=self.training,
            generator=generator,
            noise_scale=self._noise_scale(seen),
            expert_scale=self.expert_scale,
            token_ids=token_ids,
            hash_table=hash_table,
            expert_index=expert_index,
        )

    def _mixture(self, tokens_TD: Tensor, routing: Routing) -> Tensor:
        """The chosen experts' outputs for each token, weighted and added."""
        weight_input, experts = self.rule.weighting.apply_to == "input", self.experts
        if routing.slots is None and self.dispatch == "sorted" and _runs_unseen(experts, tokens_TD):
            return mixture(
                in_autocast(tokens_TD), routing.expert_index, routing.weights, experts.up_weights, experts.down_proj,
                experts.activation, weight_input=weight_input,
            )  # fmt: skip
        rows_RD, plan = dispatch(tokens_TD, routing, self.dispatch, weight_input=weight_input)
        return combine(experts(rows_RD, plan.offsets), plan)

    def _without_padding(self, hidden: Tensor, token_mask: Tensor | None) -> Tensor:
        """Masked tokens become 0: whatever padding holds must reach neither an output nor a gradient."""
        check_hidden(hidden, self.gate.hidden_size)
        mask_T = flat_mask(token_mask, tuple(hidden.shape[:-1]), hidden)
        return hidden if mask_T is None else hidden.masked_fill(~mask_T.view(hidden.shape[:-1])[..., None], 0.0)

    def _noise_scale(self, hidden: Tensor) -> Tensor | None:
        return self.gate.noise_scale(hidden) if self.training and isinstance(self.rule.noise, LearnedNoise) else None

    def extra_repr(self) -> str:
        """The rule and the way of dispatch, for ``print(module)``."""
        return f"rule={self.rule!r}, dispatch={self.dispatch!r}"


def _runs_unseen(experts: nn.Module, hidden: Tensor) -> bool:
    """Whether one operator may stand for dispatch, experts and combine: nobody looks at the experts as a module.

    On devices that Triton serves it has gradients, and a compiler sees it whole; elsewhere it is for inference.
    """
    if (
        type(experts) is not Experts
        or "forward" in experts.__dict__  # replaced on the object, as accelerate does to bring offloaded weights
        or experts._forward_hooks
        or experts._forward_pre_hooks
        or experts._backward_hooks
        or experts._backward_pre_hooks
        or _has_any_global_hook()
    ):
        return False
    if served_by_triton(hidden.device):
        return not experts.adds_gradients
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())


def _check_gate(gate: object, rule: RoutingRule, hidden_size: int, num_logits: int) -> None:
    if not isinstance(gate, Gate):
        raise TypeError(f"gate must be a Gate, such as moegate.gates.LinearGate; got {type(gate).__name__}.")
    if gate.num_experts != num_logits:
        raise ValueError(f"The gate gives {gate.num_experts} logits, but {num_logits} are needed.")
    if gate.hidden_size != hidden_size:
        raise ValueError(f"The gate takes hidden states of {gate.hidden_size}, but hidden_size={hidden_size}.")
    if isinstance(rule.noise, LearnedNoise) and type(gate).noise_scale is Gate.noise_scale:
        raise ValueError(f"This rule has a learned noise, but {type(gate).__name__} has none: use a NoisyLinearGate.")
