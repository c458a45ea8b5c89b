"""Balance: losses (pure functions of a ``Routing``) and controllers (modules that steer the bias)."""

from moegate.balance import controllers, losses

__all__ = ["controllers", "losses"]
