"""Another number of experts per token in a trained model, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from moegate.config_names import ALIASES
from moegate.hf.layers import MoELayer, moe_layers

__all__ = ["at_top_k"]

_NAMES = ALIASES["num_experts_per_tok"]

_FIXED = (
    *("JetMoeMoA", "NllbMoeSparseMLP", "PhimoeSparseMoeBlock", "SwitchTransformersSparseMLP", "VitPoseBackboneMoeMLP"),
)
"""Blocks whose code fixes ``K``, whatever number they keep: two rounds of SparseMixer, an expert a head, ..."""


@contextmanager
def at_top_k(model: nn.Module, top_k: int) -> Iterator[nn.Module]:
    """The model with ``top_k`` experts per token in every MoE layer, within a ``with`` block; then as it was.

    Only numbers are changed: those that the gates and blocks read, and the configuration's. No weight is touched.
    Layers that look their experts up by the token's id keep their table, and those whose code fixes ``K`` keep it.

    Args:
        model: a model of transformers.
        top_k: ``K``, from 1 to the experts that a layer can choose from.

    Raises:
        ValueError: no MoE layer's ``K`` can be set, or a layer has fewer experts to choose from.
        TypeError: ``top_k`` is no integer.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> with at_top_k(model, 4):
        ...     model.model.layers[0].mlp.gate.top_k, model.config.num_experts_per_tok
        (4, 4)
        >>> model.model.layers[0].mlp.gate.top_k
        2
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k is {top_k!r}; pass an integer, the number of experts per token.")
    layers = moe_layers(model)
    free = [layer for layer in layers if layer.hash_table is None and layer.row.name not in _FIXED]
    if not free:
        kinds = ", ".join(sorted({layer.row.name for layer in layers})) or "none of a known family"
        raise ValueError(f"No MoE layer of {type(model).__name__} lets its experts per token be set (it has {kinds}).")
    # Everything is looked up before anything is changed; one object may be met several times.
    places = [place for layer in free for place in _places(layer, top_k)]
    places += [place for owner in (model, _text(getattr(model, "config", None))) for place in _numbers(owner, None)]
    places = list({(id(owner), name): (owner, name, value) for owner, name, value in places}.values())
    try:
        for owner, name, _ in places:
            setattr(owner, name, top_k)
        yield model
    finally:
        for owner, name, value in places:
            setattr(owner, name, value)


def _places(layer: MoELayer, top_k: int) -> list[tuple[Any, str, int]]:
    """Where a layer's ``K`` is kept: object, name and value."""
    most = _most(layer)
    if not 1 <= top_k <= most:
        raise ValueError(f"top_k is {top_k}, but {layer.name} can choose from 1 to {most} experts per token.")
    owners = [owner for module in layer.block.modules() for owner in (module, _text(vars(module).get("config")))]
    return _numbers(_text(layer.config), None) + [place for owner in owners for place in _numbers(owner, layer.top_k)]


def _text(config: Any) -> Any:
    """The part of a configuration that is about text, where it has parts."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _numbers(owner: Any, now: int | None) -> list[tuple[Any, str, int]]:
    """The names of ``K`` that an object has of its own, where they have the value ``now``."""
    values = {name: getattr(owner, "__dict__", {}).get(name) for name in _NAMES}
    return [(owner, name, value) for name, value in values.items() if type(value) is int and now in (None, value)]


def _most(layer: MoELayer) -> int:
    """The experts that a token can choose from: those of the groups that are kept, where there are groups."""
    groups, kept = (_of_config(layer.config, name) for name in ("n_group", "topk_group"))
    if groups is None or kept is None or not 1 <= kept <= groups:
        return layer.num_experts
    return layer.num_experts // groups * kept


def _of_config(config: Any, name: str) -> int | None:
    values = (getattr(config, alias, None) for alias in ALIASES[name])
    return next((value for value in values if type(value) is int), None)
