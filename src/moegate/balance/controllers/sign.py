"""The sign rule of loss-free balancing."""

import torch
from torch import Tensor

from moegate.balance.controllers.base import BiasController, check_gain


class SignBias(BiasController):
    """A fixed step up for every expert with too little, a fixed step down for every expert with too much.

    ``b_i += rate · sign(n̄ - n_i)``, as published: every step is ``rate``, ``-rate`` or 0. The sign compares
    integers (``E · n_i`` with ``Σ n``), so the mean ``n̄`` is never rounded. It holds no state but the counts. The
    steps do not shrink near balance, so the bias keeps moving within about ``rate``.

    The mean of the bias may drift, which no top-k selection sees: only differences select. ``centre`` subtracts the
    mean of the steps and so keeps that of the bias, with the same differences.

    Args:
        num_experts: experts of the layer.
        rate: the step. Scores lie in [0, 1] (sigmoid), so 0.001 crosses them in a thousand steps; scale it
            with the scores (softmax over many experts: less).
        centre: keep the mean of the bias, as torchtitan does.

    Example:
        >>> import torch, moegate
        >>> controller, bias = SignBias(num_experts=3, rate=0.5), torch.zeros(3)
        >>> logits = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> controller.observe(moegate.route(logits, moegate.recipes.switch(), bias=bias))
        >>> controller.update(bias)
        >>> bias
        tensor([-0.5000,  0.0000,  0.5000])

    Source: Wang et al., loss-free balancing, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437; the centring is
    torchtitan's.
    """

    def __init__(self, num_experts: int, *, rate: float = 1e-3, centre: bool = False) -> None:
        super().__init__(num_experts)
        check_gain("rate", rate)
        self.rate = rate
        self.centre = centre

    def step(self, load_E: Tensor) -> Tensor:
        """``rate`` times the sign of ``n̄ - n_i``, compared as integers so that equal loads give exactly 0."""
        sign_E = torch.sign(load_E.sum() - load_E * load_E.numel()).to(torch.float32)
        if self.centre:
            sign_E = sign_E - sign_E.mean()
        return self.rate * sign_E
