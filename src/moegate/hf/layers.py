"""The MoE layers of a model: found by the class of their blocks, with the parts that the families' table names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from moegate.config import rule_from_config
from moegate.config_names import ALIASES
from moegate.hf.families import FAMILIES
from moegate.hf.family import Block
from moegate.rule import RoutingRule

__all__ = ["MoELayer", "moe_layers"]

_BLOCKS = {block.name: (family, block) for family, blocks in FAMILIES.items() for block in blocks}


@dataclass(frozen=True, eq=False)
class MoELayer:
    """One MoE layer of a model.

    Attributes:
        name: the path of the block in the model, such as ``model.layers.3.mlp``.
        block: the block's module.
        family: the folder of its modelling code in transformers, a key of ``FAMILIES``.
        row: the row of the table that describes it.
        config: the configuration that the block reads.
    """

    name: str
    block: nn.Module
    family: str
    row: Block
    config: Any

    @property
    def gate(self) -> nn.Module:
        """The router's module."""
        return _part(self.block, self.row.gate)

    @property
    def experts(self) -> nn.Module:
        """The module that holds the experts."""
        return _part(self.block, self.row.experts)

    @property
    def shared_experts(self) -> nn.Module | None:
        """The experts that every token goes to; None without any."""
        return None if self.row.shared is None else getattr(self.block, self.row.shared, None)

    @property
    def bias(self) -> Tensor | None:
        """``[E]``, the selection bias, the model's own tensor; None without one."""
        if self.row.bias is None:
            return None
        *path, name = self.row.bias.split(".")
        bias = getattr(_part(self.block, ".".join(path)) if path else self.block, name, None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def num_experts(self) -> int:
        """``E``."""
        return int(_of_config(self, "num_experts"))

    @property
    def top_k(self) -> int:
        """``K``, as the model routes now: the gate's own number where it keeps one."""
        for module in (self.gate, self.block):
            if isinstance(top_k := getattr(module, "top_k", None), int):
                return top_k
        return int(_of_config(self, "num_experts_per_tok"))

    @cached_property
    def rule(self) -> RoutingRule:
        """The rule that the block routes by; a ``ValueError`` says why there is none."""
        if self.row.no_rule:
            raise ValueError(f"{self.name} ({self.row.name}) has no rule: {self.row.no_rule}.")
        return rule_from_config(self.config.to_dict() | self.row.rule)


def moe_layers(model: nn.Module) -> list[MoELayer]:
    """The MoE layers of a model, in the order of its modules; empty for a dense model.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> [layer.name for layer in moe_layers(model)]
        ['model.layers.0.mlp', 'model.layers.1.mlp']
    """
    return list(_found(model))


def _found(model: nn.Module) -> Iterator[MoELayer]:
    for name, module in model.named_modules():
        # A class derived from a family's block is a block of that family.
        for kind in type(module).__mro__:
            if kind.__name__ in _BLOCKS:
                family, row = _BLOCKS[kind.__name__]
                # A dense layer of a mixed model may be of the same class, without the parts.
                if _has(module, row.gate) and _has(module, row.experts):
                    yield MoELayer(name, module, family, row, _config(model, name, row))
                break


def _config(model: nn.Module, name: str, row: Block) -> Any:
    """The configuration of the nearest module around the block that has one."""
    path = name.split(".")
    for end in range(len(path), -1, -1):
        module = model.get_submodule(".".join(path[:end]))
        config = getattr(module, "config", None)
        if config is not None:
            return attrgetter(row.config)(config) if row.config else config
    raise ValueError(f"No module around {name!r} has a config: pass a model of transformers.")


def _of_config(layer: MoELayer, name: str) -> Any:
    values = layer.config.get_text_config() if hasattr(layer.config, "get_text_config") else layer.config
    for alias in ALIASES[name]:
        if isinstance(value := getattr(values, alias, None), int):
            return value
    raise ValueError(f"The configuration of {layer.name} has none of {', '.join(ALIASES[name])}.")


def _part(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path)


def _has(module: nn.Module, path: str) -> bool:
    return bool(re.fullmatch(r"[\w.]+", path)) and all(hasattr(module, part) for part in path.split(".")[:1])
