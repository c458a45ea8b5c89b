"""A load loss in logarithmic form: the cross entropy of the router's mass from the load."""

from torch import Tensor

from moegate.balance.losses.switch import mean_probability
from moegate.records import Routing


def load_cross_entropy(routing: Routing) -> Tensor:
    """``-Σ_i (n_i / T) · log(P_i + 1e-6)``: mind that it does not balance.

    ``n_i`` counts the assignments before dropping, ``T`` the real tokens, ``P`` is the mean probability. It
    is a cross entropy, so for a given load it is least where ``P`` *equals* the load: its gradient confirms
    the imbalance that it finds. Perfect balance reads about ``K · log E``, its largest value at equilibrium,
    and collapse onto one expert about 0. It is here because it is published as a balancing loss; to balance,
    take ``load_balance``, or minimise ``-marginal_entropy``.

    Example:
        >>> import torch, moegate
        >>> balanced = moegate.route(20.0 * torch.eye(4), moegate.recipes.switch())
        >>> collapsed = moegate.route(torch.tensor([[20.0, 0.0, 0.0, 0.0]] * 4), moegate.recipes.switch())
        >>> round(load_cross_entropy(balanced).item(), 3), round(abs(load_cross_entropy(collapsed).item()), 3)
        (1.386, 0.0)
    """
    mean_E = mean_probability(routing)
    share_E = routing.selected_load.to(mean_E.dtype) / routing.real_tokens.clamp(min=1)
    return -(share_E * (mean_E + 1e-6).log()).sum()
