"""The ways to balance the load, by name: a loss on the routings, or a controller of the selection bias."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moegate.balance import controllers, losses
from moegate.balance.controllers import BiasController
from moegate.parts import did_you_mean
from moegate.records import Routing

BalanceLoss = Callable[[Sequence[Routing]], Tensor]


@dataclass(frozen=True)
class ControllerSettings:
    """What a controller of one layer is made from; `rate=None` takes the controller's own."""

    num_experts: int
    top_k: int
    rate: float | None


@dataclass(frozen=True)
class BalanceStrategy:
    """One way to balance: a loss over the routings of all layers, a controller for each layer, or neither.

    Attributes:
        loss: the routings of all layers → a scalar, a sum over layers.
        controller: makes the controller of one layer.
        needs: what the router must have: "sequences" (text), "learned_noise" (Shazeer's gate) or nothing.
        fixed_k: whether it needs a router with K experts for every token, and K < E.
    """

    loss: BalanceLoss | None = None
    controller: Callable[[ControllerSettings], BiasController] | None = None
    needs: Literal["", "sequences", "learned_noise"] = ""
    fixed_k: bool = False


def summed(loss: Callable[[Routing], Tensor]) -> BalanceLoss:
    """Return the loss of one layer as a sum over layers.

    Example:
        >>> from moegate import recipes, route
        >>> routing = route(torch.eye(4) * 9, recipes.switch())
        >>> round(float(summed(losses.load_balance)([routing, routing])), 2)
        2.0
    """

    def over_layers(routings: Sequence[Routing]) -> Tensor:
        return torch.stack([loss(routing) for routing in routings]).sum()

    return over_layers


def _pooled(routings: Sequence[Routing]) -> Tensor:
    # Times the layers: the same coefficient then weighs as much as in a sum over layers.
    return len(routings) * losses.pooled_load_balance(routings)


def _with_rate(
    kind: Callable[..., BiasController], name: str = "rate"
) -> Callable[[ControllerSettings], BiasController]:
    def make(settings: ControllerSettings) -> BiasController:
        return kind(settings.num_experts, **({} if settings.rate is None else {name: settings.rate}))

    return make


def _quantile(settings: ControllerSettings) -> BiasController:
    if settings.rate is None:
        return controllers.QuantileBias(settings.num_experts, settings.top_k)
    return controllers.QuantileBias(settings.num_experts, settings.top_k, rate=settings.rate)


STRATEGIES: dict[str, BalanceStrategy] = {
    "none": BalanceStrategy(),
    "aux": BalanceStrategy(loss=summed(losses.load_balance)),
    "aux_pooled": BalanceStrategy(loss=_pooled),
    "aux_first_choice": BalanceStrategy(loss=summed(losses.first_choice_load_balance)),
    "aux_sequence": BalanceStrategy(loss=summed(losses.sequence_load_balance), needs="sequences"),
    "importance": BalanceStrategy(loss=summed(losses.importance_cv)),
    "importance_load": BalanceStrategy(loss=summed(losses.importance_load), needs="learned_noise"),
    "log": BalanceStrategy(loss=summed(losses.load_cross_entropy)),
    "entropy": BalanceStrategy(loss=summed(lambda routing: -losses.marginal_entropy(routing))),
    "mutual_information": BalanceStrategy(loss=summed(lambda routing: -losses.mutual_information(routing))),
    "sign_bias": BalanceStrategy(controller=_with_rate(controllers.SignBias)),
    "proportional": BalanceStrategy(controller=_with_rate(controllers.ProportionalBias)),
    "pid": BalanceStrategy(controller=_with_rate(controllers.PIDBias, "kp")),
    "smebu": BalanceStrategy(controller=_with_rate(controllers.SMEBUBias)),
    "quantile": BalanceStrategy(controller=_quantile, fixed_k=True),
}
"""Name → strategy. A new one is a loss or a controller in `moegate.balance` and a line here."""


def balance_strategy(name: str) -> BalanceStrategy:
    """Return the balance strategy of a name.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> balance_strategy("sign_bias").loss is None
        True
        >>> balance_strategy("sign_bais")
        Traceback (most recent call last):
            ...
        ValueError: Unknown balance 'sign_bais'. Did you mean 'sign_bias'?
    """
    if name not in STRATEGIES:
        raise ValueError(f"Unknown balance '{name}'.{did_you_mean(name, STRATEGIES)}")
    return STRATEGIES[name]
