"""From shares to probabilities, as dynamic selections, losses and metrics read them."""

import torch
from torch import Tensor


def normalized(shares_TE: Tensor) -> Tensor:
    """Shares divided by their sum over the experts; a row that sums to zero becomes uniform.

    Example:
        >>> import torch
        >>> normalized(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist()
        [[0.25, 0.75], [0.5, 0.5]]
    """
    total_T1 = shares_TE.sum(dim=-1, keepdim=True)
    empty_T1 = total_T1 == 0
    return (shares_TE / total_T1.masked_fill(empty_T1, 1.0)).masked_fill(empty_T1, 1.0 / max(1, shares_TE.shape[-1]))


def entropy(probabilities_TE: Tensor) -> Tensor:
    """``-Σ p ln p`` of each row, in nats; ``0 ln 0`` is 0.

    Example:
        >>> import torch
        >>> entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).tolist()
        [0.6931471824645996, 0.0]
    """
    terms_TE: Tensor = torch.special.entr(probabilities_TE)
    return terms_TE.sum(dim=-1)
