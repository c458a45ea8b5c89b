"""How the gates of transformers make logits of hidden states: by the layer's own parameters, with their gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moegate.hf.layers import MoELayer

__all__ = ["LOGITS", "gate_logits"]


def gate_logits(layer: MoELayer, hidden: Tensor, *more: Tensor | None, **named: Tensor | None) -> Tensor:
    """The logits that a layer's gate makes, before any noise: bit for bit what the model's router computes.

    Args:
        layer: a layer of ``moe_layers``.
        hidden: ``[..., D]``, what the gate receives.
        more: what else the gate receives, such as the state of the router of the layer before (ZAYA).
        named: the same, by name.

    Returns:
        ``[T, E]``, in the type that the router computes them in. ``[B, S, E]`` where it counts by sequence (Switch).

    Raises:
        ValueError: when the layer has no gate.

    Example:
        >>> import torch
        >>> from moegate.hf import moe_layers
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> gate_logits(moe_layers(model)[0], torch.zeros(3, 16)).shape
        torch.Size([3, 8])
    """
    return LOGITS[layer.row.logits](layer, hidden, *more, **named)


def _rows(hidden: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


def _matrix(layer: MoELayer) -> tuple[Tensor, Tensor | None]:
    """``[E, D]``, and ``[E]`` or None: the weight of the gate and its bias, which lie side by side."""
    assert layer.row.weight is not None
    *path, name = layer.row.weight.split(".")
    module: nn.Module = layer.gate.get_submodule(".".join(path))
    return getattr(module, name), getattr(module, "bias", None)


def _linear(layer: MoELayer, hidden: Tensor, *_: object, **__: object) -> Tensor:
    """In the type of the gate's weight."""
    weight_ED, bias_E = _matrix(layer)
    return functional.linear(_rows(hidden).to(weight_ED.dtype), weight_ED, bias_E)


def _linear_float32(layer: MoELayer, hidden: Tensor, *_: object, **__: object) -> Tensor:
    """In float32, whatever the type of the model."""
    weight_ED, bias_E = _matrix(layer)
    return functional.linear(_rows(hidden).float(), weight_ED.float(), None if bias_E is None else bias_E.float())


def _linear_float32_always(layer: MoELayer, hidden: Tensor, *_: object, **__: object) -> Tensor:
    """In float32 under autocast too."""
    with torch.autocast(hidden.device.type, enabled=False):
        return _linear_float32(layer, hidden)


def _linear_own_type(layer: MoELayer, hidden: Tensor, *_: object, **__: object) -> Tensor:
    """In the type that the gate keeps as its ``dtype``, and in the shape in which it receives tokens."""
    gate: Any = layer.gate
    weight_ED, bias_E = _matrix(layer)
    bias_E = None if bias_E is None else bias_E.to(gate.dtype)
    return functional.linear(hidden.to(gate.dtype), weight_ED.to(gate.dtype), bias_E)


def _soft_capped(layer: MoELayer, hidden: Tensor, *_: object, **__: object) -> Tensor:
    """``cap · tanh(z / cap)`` in float32 (Laguna)."""
    gate: Any = layer.gate
    logits_TE, cap = _linear(layer, hidden).float(), gate.router_logit_softcapping
    return torch.tanh(logits_TE / cap) * cap if cap > 0.0 else logits_TE


def _multiplied(layer: MoELayer, hidden: Tensor, *_: object, **__: object) -> Tensor:
    """By a constant of the configuration (Muse Spark)."""
    gate: Any = layer.gate
    return _linear_float32(layer, hidden) * float(gate.output_multiplier)


def _normed(layer: MoELayer, hidden: Tensor, *_: object, **__: object) -> Tensor:
    """Of normed and scaled hidden states (Gemma 4)."""
    gate: Any = layer.gate
    normed_TD = gate.norm(_rows(hidden)) * gate.scale * gate.scalar_root_size
    return _linear(layer, normed_TD)


def _recurrent(layer: MoELayer, hidden: Tensor, router_states: Tensor | None = None) -> Tensor:
    """Of an MLP that also reads what the router of the layer before had read (ZAYA)."""
    gate: Any = layer.gate
    return _rows(gate.router_mlp(router_state(layer, hidden, router_states)))


def router_state(layer: MoELayer, hidden: Tensor, router_states: Tensor | None = None) -> Tensor:
    """``[B, S, H]``, what the MLP of a recurrent gate reads, and with it the gate of the next layer (ZAYA)."""
    gate: Any = layer.gate
    state: Tensor = gate.down_proj(hidden)
    if gate.use_eda and router_states is not None:
        state = state + router_states * gate.router_states_scale
    return state


def _product_keys(layer: MoELayer, hidden: Tensor, *_: object, **__: object) -> Tensor:
    """Of both keys of a pair, one behind the other; Doge takes them from other tokens of the batch."""
    logits = _linear(layer, hidden)
    return torch.cat(tuple(logits.view(2, len(logits), -1)), dim=-1)


LOGITS: dict[str, Callable[..., Tensor]] = {
    "linear": _linear,
    "linear_float32": _linear_float32,
    "linear_float32_always": _linear_float32_always,
    "linear_own_type": _linear_own_type,
    "soft_capped": _soft_capped,
    "multiplied": _multiplied,
    "normed": _normed,
    "recurrent": _recurrent,
    "product_keys": _product_keys,
}
"""Each way to make logits: called with a layer and what its gate receives, it returns what ``gate_logits`` does."""
