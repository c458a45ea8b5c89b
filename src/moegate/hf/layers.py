"""The MoE layers of a model: found by the class of their blocks, with the parts that the families' table names."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from moegate.config import rule_from_config
from moegate.config_names import ALIASES
from moegate.hf.families import FAMILIES
from moegate.hf.family import Block
from moegate.rule import RoutingRule
from moegate.selection import Hash

__all__ = ["MoELayer", "moe_layers", "read_rule"]

# Modules from the outside in, each with its name in the one before.
_Path = tuple[tuple[str, nn.Module], ...]

_BLOCKS = {block.name: (family, block) for family, blocks in FAMILIES.items() for block in blocks}

# Where a gate keeps how many experts it chooses among, LongCat-Flash's that return what they read included.
_WIDTHS = ("n_routed_experts", "num_experts")

# Modules that stand around another one, and the names under which they hold it.
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"))

# Children that run before those that were registered before them: JetMoE's attention, the eyes of Dots 3.
_RUN_FIRST = {"self_attention", "vision_tower"}


@dataclass(frozen=True, eq=False)
class MoELayer:
    """One MoE layer of a model.

    Attributes:
        name: the path of the block in the model of transformers, such as ``model.layers.3.mlp``: the same however the
            model is wrapped (DDP, FSDP, PEFT, ``torch.compile``).
        path: the path of the block in the model that was searched, what is wrapped around it included.
        block: the block's module.
        family: the folder of its modelling code in transformers, a key of ``FAMILIES``.
        row: the row of the table that describes it.
        config: the configuration that the block reads, of this layer where layers differ.
    """

    name: str
    path: str
    block: nn.Module
    family: str
    row: Block
    config: Any

    @property
    def gate(self) -> nn.Module:
        """The router's module; a ``ValueError`` where there is none."""
        if self.row.gate is None:
            raise ValueError(f"{self.name} ({self.row.name}) has no gate: {self.row.special}.")
        return _module(self.block, self.row.gate)

    @property
    def experts(self) -> nn.Module:
        """The module that holds the experts."""
        return _module(self.block, self.row.experts)

    @property
    def shared_experts(self) -> nn.Module | None:
        """The experts that every token goes to; None without any."""
        shared = None if self.row.shared is None else _part(self.block, self.row.shared)
        return shared if isinstance(shared, nn.Module) else None

    @property
    def bias(self) -> Tensor | None:
        """``[E]``, the selection bias, the model's own memory; None without one."""
        bias = self._tensor(self.row.bias)
        return bias if bias is None or bias.ndim == 1 else bias.detach().view(-1)

    @property
    def expert_scale(self) -> Tensor | None:
        """Learned factors on the experts' weights, as ``route`` takes them; None without any.

        ``[E]``, or one for each logit where shared experts are weighed together with the others.
        """
        scale = self._tensor(self.row.expert_scale)
        return scale if scale is None else scale.expand(self.rule.num_logits(self.num_experts))

    @property
    def hash_table(self) -> Tensor | None:
        """``[V, K]``, the experts of each token id, in a layer that routes by them; None elsewhere."""
        return self._tensor(self.row.hash_table)

    @property
    def num_experts(self) -> int:
        """``E``, the experts that the router chooses among."""
        gate = self.block if self.row.gate is None else self.gate
        for module, names in ((gate, _WIDTHS), (self.experts, ("num_experts",)), (self.block, ("num_experts",))):
            for name in names:
                if type(number := getattr(module, name, None)) is int:
                    return number
        return self._count("num_experts")

    @property
    def top_k(self) -> int:
        """``K``, as the model routes now: the gate's own number, unless the family's code fixes another.

        A rule that was swapped in has its own; ``E`` where it does not fix how many.
        """
        if (rule := self._other_rule()) is not None:
            return int(getattr(rule.selection, "top_k", self.num_experts))
        if type(fixed := self.row.rule.get("num_experts_per_tok")) is int:
            return fixed
        for path in (self.row.gate, ""):
            module = self.block if not path else self.gate
            if type(top_k := getattr(module, "top_k", None)) is int:
                return top_k
        return self._count("num_experts_per_tok")

    @cached_property
    def rule(self) -> RoutingRule:
        """The rule by which the experts are chosen and weighted; a ``ValueError`` says why there is none.

        Its weights are those that the experts receive: a factor that the block puts on what they return is left out.
        Where ``swap`` has put another rule in the place of the model's own, it is that one.
        """
        if (other := self._other_rule()) is not None:
            return other
        if self.row.no_rule:
            raise ValueError(f"{self.name} ({self.row.name}) has no rule: {self.row.no_rule}.")
        rule = read_rule(self.row, self.config.to_dict(), self.top_k, self.num_experts)
        if self.row.scaled_after is not None:
            after = float(_part(self.block, self.row.scaled_after))
            rule = rule.replace(weighting=replace(rule.weighting, scale=rule.weighting.scale / after))
        return rule if self.hash_table is None else rule.replace(selection=Hash(top_k=self.top_k))

    def _other_rule(self) -> RoutingRule | None:
        """What ``swap`` has the gate route by in place of the model's own rule; None where it routes by its own."""
        gate = None if self.row.gate is None else _part(self.block, self.row.gate)
        router: Any = getattr(gate, "moegate_router", None)
        rule: RoutingRule | None = None if router is None or router.is_own else router.rule
        return rule

    def _tensor(self, path: str | None) -> Tensor | None:
        tensor = None if path is None else _part(self.block, path)
        return tensor if isinstance(tensor, Tensor) else None

    def _count(self, name: str) -> int:
        values = {alias: getattr(self.config, alias, None) for alias in ALIASES[name]} | self.row.rule
        for alias in ALIASES[name]:
            if type(value := values.get(alias)) is int:
                return value
        raise ValueError(f"The configuration of {self.name} has none of {', '.join(ALIASES[name])}.")


_COUNT_NAMES = frozenset((*ALIASES["num_experts"], *ALIASES["num_experts_per_tok"]))


def read_rule(row: Block, values: dict[str, Any], top_k: int, num_experts: int | None = None) -> RoutingRule:
    """The rule of the blocks of a row, by the names of a configuration, but for the numbers of experts.

    Example:
        >>> (row,) = FAMILIES["olmoe"]
        >>> read_rule(row, {"norm_topk_prob": True}, top_k=8)
        RoutingRule(selection=TopK(top_k=8), weighting=Weighting(renormalize=True))
    """
    others = {name: value for name, value in values.items() if name not in _COUNT_NAMES}
    counts = {"num_experts": num_experts, "num_experts_per_tok": top_k}
    return rule_from_config(others | counts | {"model_type": row.model_type} | row.rule)


def moe_layers(model: nn.Module) -> list[MoELayer]:
    """The MoE layers of a model, in the order in which they run; empty for a dense model.

    Args:
        model: a model of transformers, or what stands around one: DDP, FSDP, PEFT, ``torch.compile``.

    Raises:
        TypeError: when it is no module.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> [layer.name for layer in moe_layers(model)]
        ['model.layers.0.mlp', 'model.layers.1.mlp']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, such as a model of transformers; got {model!r}.")
    models = list(_outermost((("", model),))) or [(("", model),)]
    # Names start at the outermost model of transformers, unless there are several.
    return [layer for path in models for layer in _found(path, 0 if len(models) > 1 else len(path), set())]


def _outermost(path: _Path) -> Iterator[_Path]:
    """The outermost models of transformers in the last module of a path."""
    _, module = path[-1]
    if any(kind.__name__ == "PreTrainedModel" for kind in type(module).__mro__):
        yield path
    else:
        for child in module.named_children():
            yield from _outermost((*path, child))


def _found(path: _Path, start: int, seen: set[nn.Module]) -> Iterator[MoELayer]:
    """The layers in the last module of a path, each once; their names start there in the path."""
    _, module = path[-1]
    seen.add(module)
    layer = _layer(path, start)
    if layer is not None:
        yield layer
    for child in sorted(module.named_children(), key=lambda child: child[0] not in _RUN_FIRST):
        if child[1] not in seen:
            yield from _found((*path, child), start, seen)


def _layer(path: _Path, start: int) -> MoELayer | None:
    block = path[-1][1]
    # A class derived from a family's block is a block of that family.
    for kind in type(block).__mro__:
        if kind.__name__ in _BLOCKS:
            family, row = _BLOCKS[kind.__name__]
            # A dense layer of a mixed model may be of the same class, without the parts.
            if not _is_whole(block, row):
                return None
            name = ".".join(name for name, _ in path[start:] if name and name not in _WRAPPERS)
            full = ".".join(name for name, _ in path if name)
            return MoELayer(name, full, block, family, row, _config(path, row))
    return None


def _is_whole(block: nn.Module, row: Block) -> bool:
    """Whether a block has the parts of its row. Code from outside that shares a name may keep experts in a list."""
    if row.gate is not None and not isinstance(_part(block, row.gate), nn.Module):
        return False
    experts = _part(block, row.experts)
    return isinstance(experts, nn.Module) and type(experts).forward is not nn.Module.forward


def _config(path: _Path, row: Block) -> Any:
    """The configuration of the nearest module around the block that has one, of the block's layer."""
    for _, module in reversed(path):
        config: Any = getattr(module, "config", None)
        if hasattr(config, "to_dict"):
            number = next((int(name) for name, _ in reversed(path) if name.isdigit()), None)
            if number is not None and getattr(config, "is_heterogeneous", False):
                config = config.per_layer_config[number]
            return attrgetter(row.config)(config) if row.config else config
    raise ValueError(f"No module around a {row.name} has a config: pass a model of transformers.")


def _part(block: nn.Module, path: str) -> Any:
    """What lies at a path, past what stands around its modules; None where there is nothing."""
    part: Any = block
    for name in path.split("."):
        part = getattr(part, name, None)
        while isinstance(part, nn.Module) and (inner := _WRAPPERS.intersection(part._modules)):
            part = part._modules[min(inner)]
    return part


def _module(block: nn.Module, path: str) -> nn.Module:
    module = _part(block, path)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{type(block).__name__}.{path} is {type(module).__name__}, no module.")
    return module
