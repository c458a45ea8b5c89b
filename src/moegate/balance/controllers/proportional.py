"""The proportional rule: the larger the violation, the larger the step."""

from torch import Tensor

from moegate.balance.controllers.base import BiasController, check_gain, violation


class ProportionalBias(BiasController):
    """``b_i += rate · (n̄ - n_i) / n̄``: steps that shrink as the load evens out.

    The steps sum to zero, so the mean of the bias stays. An expert without load goes up by ``rate``, an
    expert with all of it goes down by ``(E - 1) · rate``.

    Example:
        >>> import torch, moegate
        >>> controller, bias = ProportionalBias(num_experts=2, rate=0.1), torch.zeros(2)
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> controller.observe(moegate.route(logits, moegate.recipes.switch(), bias=bias))
        >>> controller.update(bias)
        >>> bias
        tensor([-0.0500,  0.0500])

    Source: the ablation of loss-free balancing, arXiv 2408.15664.
    """

    def __init__(self, num_experts: int, *, rate: float = 1e-3) -> None:
        super().__init__(num_experts)
        check_gain("rate", rate)
        self.rate = rate

    def step(self, load_E: Tensor) -> Tensor:
        """``rate`` times the violation."""
        return self.rate * violation(load_E)
