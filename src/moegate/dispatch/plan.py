"""What every way of dispatching has in common: a frozen plan that carries tokens to experts and back."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """The dispatch metadata of one routing.

    Attributes:
        num_tokens: ``T``.
        counts: ``[E]`` int64, rows per expert.
        offsets: ``[E]`` int64, the end of each expert's rows.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), moegate.recipes.mixtral(top_k=2))
        >>> rows, plan = moegate.dispatch(torch.ones(2, 3), routing)
        >>> isinstance(plan, Plan), plan.counts.tolist(), plan.offsets.tolist()
        (True, [2, 2], [2, 4])
    """

    num_tokens: int
    counts: Tensor
    offsets: Tensor

    def gather(self, hidden_TD: Tensor) -> Tensor:
        """The experts' input rows ``[R, D]``, sorted by expert, from ``hidden [T, D]``."""
        raise TypeError(f"{type(self).__name__} does not say how it gathers.")

    def scatter(self, rows_RD: Tensor) -> Tensor:
        """The tokens' outputs ``[T, D]``, the weighted sum of what the experts returned."""
        raise TypeError(f"{type(self).__name__} does not say how it scatters.")
