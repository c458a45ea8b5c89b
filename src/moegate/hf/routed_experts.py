"""The experts of transformers that run on moegate's kernels as modules, whether they are on its interface or not."""

import torch
from torch import Tensor, nn

from moegate.hf.derived import Derived
from moegate.hf.experts_interface import Networks, experts_forward, run_networks
from moegate.hf.layers import MoELayer

__all__ = ["experts_class", "why_not_experts"]

_SEPARATE = "its experts are modules of their own, one each"
_LEFT_ALONE = {
    "dbrx": "its experts lie in three matrices of a module of their own",
    "doge": "its experts are single neurons, looked up in embeddings",
    "jetmoe": "its experts take tokens that its gate has sorted",
    "nllb_moe": _SEPARATE,
    "switch_transformers": _SEPARATE,
    "vitpose_backbone": "all tokens of an image go to the one expert of its dataset",
}


class RoutedExperts(Derived):
    """Experts of any layout that the interface knows, called with hidden states, indices and weights."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs."""
        return experts_forward(self, hidden_states, top_k_index, top_k_weights)


class WithIdentities(Derived):
    """Experts of which the last do nothing: they return what they get (LongCat-Flash)."""

    num_routed_experts: int
    gate_up_proj: Tensor | None

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs."""
        idle_TK = top_k_index >= self.num_routed_experts
        kept_T1 = top_k_weights.masked_fill(~idle_TK, 0.0).sum(dim=-1, keepdim=True)
        kept_TD = (hidden_states * kept_T1).to(hidden_states.dtype)
        if self.gate_up_proj is None:
            return kept_TD
        return kept_TD + experts_forward(self, hidden_states, top_k_index, top_k_weights.masked_fill(idle_TK, 0.0))


class OfDenseRows(Derived):
    """Experts that are given a row of every token each, zero where the token does not go (Llama 4).

    Without biases a zero row comes out as zero, so only the others are computed.
    """

    gate_up_proj: Tensor
    down_proj: Tensor
    act_fn: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[E · T, D]`` to ``[E · T, D]``."""
        if torch.compiler.is_compiling():  # how many rows are not zero is known when it runs
            own: Tensor = self.own_class.forward(self, hidden_states)
            return own
        num_experts = self.gate_up_proj.shape[0]
        routed_N = (hidden_states != 0).any(dim=-1)
        offsets_E = routed_N.view(num_experts, -1).sum(dim=-1).cumsum(dim=0)
        networks = Networks(self.gate_up_proj, self.down_proj, None, None, self._between, None)
        row_R = routed_N.nonzero().flatten()
        out_RD = run_networks(networks, hidden_states[row_R], offsets_E)
        return torch.zeros_like(hidden_states).index_copy(0, row_R, out_RD)

    def _between(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        inner: Tensor = up * self.act_fn(gate)
        return inner


_CLASSES: dict[str, type[Derived]] = {"llama4": OfDenseRows, "longcat_flash": WithIdentities}
_OUTSIDE = {"step3p7"}
"""Families with the experts of the interface, but not on it."""


def experts_class(layer: MoELayer) -> type[Derived]:
    """What the experts of a layer become."""
    return _CLASSES.get(layer.family, RoutedExperts)


def why_not_experts(layer: MoELayer) -> str:
    """Why the experts of a layer can't run on moegate's kernels; empty where they can."""
    experts = layer.experts
    if layer.family in _LEFT_ALONE:
        return _LEFT_ALONE[layer.family]
    if "forward" in vars(experts):
        return "their forward was replaced on the object, as offloading and expert parallelism do: swap before that"
    known = layer.family in _CLASSES or layer.family in _OUTSIDE or is_on_the_interface(experts)
    return "" if known else f"{type(experts).__name__} is not on the experts interface of transformers"


def is_on_the_interface(experts: nn.Module) -> bool:
    """Whether ``set_experts_implementation`` reaches a module."""
    return "is_transposed" in vars(experts)
