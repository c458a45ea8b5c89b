"""How much two routings of the same tokens differ: over training, over precisions, over implementations."""

import torch
from torch import Tensor

from moegate.metrics.membership import selection_map
from moegate.records import Routing


def churn(before: Routing, after: Routing) -> float:
    """The mean share of a token's experts that changed: ``1 - |S ∩ S'| / k``; 0 for the same sets.

    ``k`` is the larger of the two sets where they differ in size. Over the tokens that are real in both
    routings and select an expert in either; NaN if there are none. The order of the experts does not matter.

    Raises:
        ValueError: the routings are not of the same tokens and experts.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.mixtral(top_k=2)
        >>> before = moegate.route(torch.tensor([[3.0, 2.0, 1.0]]), rule)
        >>> after = moegate.route(torch.tensor([[3.0, 1.0, 2.0]]), rule)
        >>> churn(before, after)
        0.5
    """
    before_TE, after_TE = _comparable(before, after)
    shared_T = (before_TE & after_TE).sum(dim=-1).to(torch.float64)
    size_T = torch.maximum(before_TE.sum(dim=-1), after_TE.sum(dim=-1))
    return (1 - shared_T / size_T)[size_T > 0].mean().item()


def agreement(before: Routing, after: Routing) -> float:
    """The share of the tokens whose sets of experts are equal, such as in training and in inference.

    Over the tokens that are real in both routings; NaN if there are none.

    Raises:
        ValueError: the routings are not of the same tokens and experts.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.mixtral(top_k=2)
        >>> before = moegate.route(torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), rule)
        >>> after = moegate.route(torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]]), rule)
        >>> agreement(before, after)
        0.5
    """
    before_TE, after_TE = _comparable(before, after)
    return (before_TE == after_TE).all(dim=-1).to(torch.float64).mean().item()


def _comparable(before: Routing, after: Routing) -> tuple[Tensor, Tensor]:
    """The selection maps of both, at the tokens that are real in both."""
    shapes = [(routing.num_tokens, routing.num_experts) for routing in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the routings are of {shapes[0][0]} tokens over {shapes[0][1]} experts and of {shapes[1][0]} "
            f"tokens over {shapes[1][1]} experts: compare two routings of the same batch by the same layer."
        )
    before_TE, after_TE = selection_map(before), selection_map(after)
    for routing in (before, after):
        if routing.token_mask is not None:
            masks = [other.token_mask for other in (before, after) if other.token_mask is not None]
            real_T = torch.stack(masks).all(dim=0)
            return before_TE[real_T], after_TE[real_T]
    return before_TE, after_TE
