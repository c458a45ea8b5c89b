"""Controllers: modules that balance the experts by steering the selection bias, without a loss.

Each step of training: ``observe(routing)`` for every forward pass, then ``update(bias)`` once, after the
optimizer's step. The bias only selects; the weights of the experts never see it.
"""

from moegate.balance.controllers.base import BiasController
from moegate.balance.controllers.pid import PIDBias
from moegate.balance.controllers.proportional import ProportionalBias
from moegate.balance.controllers.quantile import QuantileBias
from moegate.balance.controllers.sign import SignBias
from moegate.balance.controllers.smebu import SMEBUBias

__all__ = ["BiasController", "PIDBias", "ProportionalBias", "QuantileBias", "SMEBUBias", "SignBias"]
