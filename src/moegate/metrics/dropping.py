"""What capacity took away, and how many experts a token ends up with."""

import math

from moegate.records import Routing


def drop_rate(routing: Routing) -> float:
    """The share of the chosen assignments that were dropped; NaN if none were chosen.

    Rerouted assignments were carried out, so they don't count; nor do the further experts that a relaxed
    selection runs in training.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.switch(capacity_factor=1.0)  # 16 tokens, 2 experts: room for 8 each
        >>> drop_rate(moegate.route(torch.tensor([[1.0, 0.0]] * 16), rule, training=True))
        0.5
    """
    selected = routing.selected_load.sum().item()
    return _ratio(max(0, selected - routing.load.sum().item()), selected)


def fully_dropped_rate(routing: Routing) -> float:
    """The share of the real tokens that no expert works on: all their choices were dropped, or they had none.

    Such a token's output is that of the shared experts, or nothing, and the residual carries it on.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.switch(capacity_factor=1.0)
        >>> fully_dropped_rate(moegate.route(torch.tensor([[1.0, 0.0]] * 16), rule, training=True))
        0.5
    """
    served_tokens = (routing.expert_index >= 0).any(dim=-1).sum().item()
    real_tokens = routing.real_tokens.item()
    return _ratio(real_tokens - served_tokens, real_tokens)


def experts_per_token(routing: Routing) -> float:
    """The mean number of experts that work on a real token, after dropping; NaN without a real token.

    Example:
        >>> import torch, moegate
        >>> experts_per_token(moegate.route(torch.zeros(5, 4), moegate.recipes.mixtral(top_k=2)))
        2.0
    """
    return _ratio(routing.load.sum().item(), routing.real_tokens.item())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
