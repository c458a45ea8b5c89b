"""A PID controller on the violation."""

import torch
from torch import Tensor

from moegate.balance.controllers.base import BiasController, check_gain, violation
from moegate.parts import check_positive


class PIDBias(BiasController):
    """Proportional, integral and derivative terms of the violation ``e_i = (n̄ - n_i) / n̄``.

    The bias is moved by ``u_t - u_{t-1}``, where ``u_t = kp · e_t + I_t + kd · (e_t - e_{t-1})`` and
    ``I_t = clip(I_{t-1} + ki · e_t, ±limit)``; the first derivative is 0. So whatever the bias was at the
    start (a checkpoint's, say) stays underneath as an offset.

    The clipped integral is the anti-windup: while an expert can't be filled whatever its bias (none of its
    tokens come), the integral stops at ``limit`` and is back at once when they do.

    Args:
        num_experts: experts of the layer.
        kp: gain on the violation now.
        ki: gain on its sum, the part that remains when the violation is gone; alone it is
            ``ProportionalBias``.
        kd: gain on its change, which damps oscillation.
        limit: the most that the integral may contribute, in units of the score.

    Example:
        >>> import torch, moegate
        >>> controller, bias = PIDBias(num_experts=2, kp=0.0, ki=0.1, kd=0.0), torch.zeros(2)
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> controller.observe(moegate.route(logits, moegate.recipes.switch(), bias=bias))
        >>> controller.update(bias)
        >>> bias
        tensor([-0.0500,  0.0500])
    """

    integral: Tensor
    previous_error: Tensor
    previous_output: Tensor
    num_updates: Tensor

    def __init__(
        self, num_experts: int, *, kp: float = 2e-3, ki: float = 1e-3, kd: float = 0.0, limit: float = 1.0
    ) -> None:
        super().__init__(num_experts)
        for name, gain in (("kp", kp), ("ki", ki), ("kd", kd)):
            check_gain(name, gain)
        check_positive("limit", limit)
        self.kp = kp
        self.ki = ki
        self.kd = kd
        self.limit = limit
        for name in ("integral", "previous_error", "previous_output"):
            self.register_buffer(name, torch.zeros(num_experts, dtype=torch.float32))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def step(self, load_E: Tensor) -> Tensor:
        """The change of the PID output since the update before."""
        error_E = violation(load_E)
        slope_E = torch.where(self.num_updates > 0, error_E - self.previous_error, 0.0)
        self.integral.add_(self.ki * error_E).clamp_(-self.limit, self.limit)
        output_E = self.kp * error_E + self.integral + self.kd * slope_E
        delta_E = output_E - self.previous_output
        self.previous_error.copy_(error_E)
        self.previous_output.copy_(output_E)
        self.num_updates += 1
        return delta_E
