"""The soft, smoothed sign rule of Trinity Large."""

import torch
from torch import Tensor

from moegate.balance.controllers.base import BiasController, check_gain, violation
from moegate.parts import check_number


class SMEBUBias(BiasController):
    """A sign rule that softens near balance and is smoothed over steps.

    ``Δ = rate · tanh(kappa · (n̄ - n) / n̄)``, minus its mean; ``m = momentum · m + (1 - momentum) · Δ``;
    ``b += m``. Far from balance it steps like ``SignBias``, near it like ``ProportionalBias``.

    Example:
        >>> import torch, moegate
        >>> controller, bias = SMEBUBias(num_experts=2, rate=0.1, momentum=0.0, kappa=100.0), torch.zeros(2)
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> controller.observe(moegate.route(logits, moegate.recipes.switch(), bias=bias))
        >>> controller.update(bias)
        >>> bias
        tensor([-0.1000,  0.1000])

    Source: Trinity Large, arXiv 2602.17004.
    """

    momentum_E: Tensor

    def __init__(self, num_experts: int, *, rate: float = 5e-4, momentum: float = 0.5, kappa: float = 2.0) -> None:
        super().__init__(num_experts)
        check_gain("rate", rate)
        check_gain("kappa", kappa)
        check_number("momentum", momentum)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: pass a value from 0 (no smoothing) to below 1.")
        self.rate = rate
        self.momentum = momentum
        self.kappa = kappa
        self.register_buffer("momentum_E", torch.zeros(num_experts, dtype=torch.float32))

    def step(self, load_E: Tensor) -> Tensor:
        """The smoothed, mean-free soft sign."""
        delta_E = self.rate * torch.tanh(self.kappa * violation(load_E))
        self.momentum_E.mul_(self.momentum).add_((1 - self.momentum) * (delta_E - delta_E.mean()))
        return self.momentum_E.clone()
