"""``swap``: the routers and experts of a model on moegate's kernels, in place and back again."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from torch import nn

from moegate.hf.derived import Derived, derive, restore
from moegate.hf.layers import MoELayer, moe_layers
from moegate.hf.routed_experts import experts_class, why_not_experts
from moegate.hf.routed_gate import RoutedGate, Router, leaves_slots_empty, why_not_routed
from moegate.rule import RoutingRule

__all__ = ["Swapped", "SwappedLayer", "swap", "unswap"]


@dataclass(frozen=True)
class SwappedLayer:
    """What became of a layer: of its router and of its experts, ``"swapped"`` or why they were left alone."""

    name: str
    router: str
    experts: str


class Swapped:
    """A model whose parts were swapped; as a context manager, until the end of the block.

    Attributes:
        report: a ``SwappedLayer`` for each MoE layer; ``print(swapped)`` shows it as a table.
    """

    report: tuple[SwappedLayer, ...]

    def __init__(self, report: tuple[SwappedLayer, ...], modules: tuple[nn.Module, ...]) -> None:
        self.report = report
        self._modules = modules

    def undo(self) -> None:
        """Gives every swapped part its own code back; bit for bit what it was. Twice does nothing."""
        for module in self._modules:
            _restore(module)

    def __enter__(self) -> "Swapped":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        rows = [("layer", "router", "experts"), *((row.name, row.router, row.experts) for row in self.report)]
        wide = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(f"{name:{wide[0]}}  {router:{wide[1]}}  {experts}" for name, router, experts in rows)


def swap(model: nn.Module, router: bool | RoutingRule = True, experts: bool = True) -> Swapped:
    """Lets the routers and experts of a transformers model run on moegate's kernels, in place.

    Parameters, buffers, their names, hooks and the configuration stay: checkpoints load both ways, and optimizers go
    on. The classes of the gates and of the experts change, to ones derived from their own. Parts that moegate does not
    know how to run are left alone, and the report says why. Swapped experts run on moegate whatever
    ``set_experts_implementation`` says.

    Args:
        model: a model of transformers, or what stands around one.
        router: True routes by each layer's own rule, a ``RoutingRule`` by another: another ``top_k``, or one of
            ``moegate.recipes``. False leaves the routers.
        experts: False leaves the experts.

    Returns:
        A ``Swapped``: its ``undo`` takes everything back, its ``report`` says what was done. ``unswap`` does the same
        for a copy of the model.

    Raises:
        TypeError: when an argument is of another type.
        ValueError: when the model has no MoE layers, is swapped already, or the rule leaves slots empty while experts
            that can't take empty slots stay.

    Example:
        >>> import torch, moegate
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
        >>> config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
        >>> model, tokens = MixtralForCausalLM(config).eval(), torch.tensor([[1, 2, 3]])
        >>> logits = model(tokens).logits
        >>> with swap(model) as swapped:
        ...     print(swapped)
        ...     torch.allclose(model(tokens).logits, logits, atol=1e-5)
        layer               router   experts
        model.layers.0.mlp  swapped  swapped
        model.layers.1.mlp  swapped  swapped
        True
        >>> with torch.no_grad(), swap(model, router=moegate.recipes.mixtral(top_k=1)):
        ...     torch.allclose(model(tokens).logits, logits, atol=1e-5)
        False
    """
    if not isinstance(router, bool | RoutingRule) or not isinstance(experts, bool):
        raise TypeError(
            f"router must be True, False or a RoutingRule and experts True or False; got {router!r} and {experts!r}."
        )
    layers = moe_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no MoE layers that moegate knows: see moegate.hf.moe_layers.")
    if any(isinstance(module, Derived) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is swapped already: call undo() first, or moegate.hf.unswap(model).")
    rule = router if isinstance(router, RoutingRule) else None
    plan = [_Plan.of(layer, rule, bool(router), experts) for layer in layers]
    for each in plan:
        each.check(rule)
    swapped = tuple(module for each in plan for module in each.run(rule))
    return Swapped(tuple(SwappedLayer(each.layer.name, each.router, each.experts) for each in plan), swapped)


def unswap(model: nn.Module) -> None:
    """Takes back every swap in a model, as ``Swapped.undo`` does: for a copy, or a model that was loaded swapped.

    Example:
        >>> import copy
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> with swap(model):
        ...     twin = copy.deepcopy(model)
        >>> unswap(twin)
        >>> type(twin.model.layers[0].mlp.gate).__name__
        'MixtralTopKRouter'
    """
    for module in model.modules():
        _restore(module)


def _restore(module: nn.Module) -> None:
    if isinstance(module, RoutedGate):
        del module.moegate_router
    restore(module)


_SWAPPED = "swapped"
_NOT_ASKED = "left, as asked"


@dataclass(frozen=True)
class _Plan:
    """What is to become of a layer."""

    layer: MoELayer
    router: str
    experts: str

    @classmethod
    def of(cls, layer: MoELayer, rule: RoutingRule | None, router: bool, experts: bool) -> "_Plan":
        def outcome(wanted: bool, why_not: Callable[[], str]) -> str:
            return (why_not() or _SWAPPED) if wanted else _NOT_ASKED

        return cls(
            layer,
            outcome(router, lambda: why_not_routed(layer, rule)),
            outcome(experts, lambda: why_not_experts(layer)),
        )

    def check(self, rule: RoutingRule | None) -> None:
        if rule is not None and self.router == _SWAPPED and self.experts != _SWAPPED and leaves_slots_empty(rule):
            raise ValueError(
                f"{rule!r} may leave slots empty, which the experts of {self.layer.name} do not take ({self.experts}): "
                "pass experts=True, or a rule that always gives top_k experts."
            )

    def run(self, rule: RoutingRule | None) -> list[nn.Module]:
        done: list[nn.Module] = []
        if self.router == _SWAPPED:
            gate = self.layer.gate
            own = self.layer.rule
            router = Router(self.layer, own if rule is None else rule, is_own=rule is None, top_k=self.layer.top_k)
            derive(gate, RoutedGate)
            gate.moegate_router = router  # type: ignore[assignment] # no module, so a plain attribute
            done.append(gate)
        if self.experts == _SWAPPED:
            derive(self.layer.experts, experts_class(self.layer))
            done.append(self.layer.experts)
        return done
