"""Entropies of the router's probabilities, in nats: of each token, of their mean, and the difference."""

from torch import Tensor

from moegate.balance.losses.switch import mean_probability
from moegate.probability import entropy
from moegate.records import Routing


def token_entropy(routing: Routing) -> Tensor:
    """The mean over the real tokens of ``H(p_t)``: how undecided the router is about a token.

    From 0 (certain) to ``log E`` (indifferent). Add it to a loss to keep a top-p router from spreading over
    ever more experts; subtract it to keep a router exploring.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.zeros(3, 4), moegate.recipes.switch())
        >>> round(token_entropy(routing).item(), 4)
        1.3863

    Source: Huang et al., arXiv 2403.07652 (top-p routing).
    """
    return _smooth_entropy(routing.probabilities).sum() / routing.real_tokens.clamp(min=1)


def marginal_entropy(routing: Routing) -> Tensor:
    """``H(mean_t p_t)``: how evenly the router's probability falls on the experts over all real tokens.

    From 0 (one expert has it all) to ``log E`` (even). Subtract it from a loss to balance.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(100.0 * torch.eye(4), moegate.recipes.switch())
        >>> round(marginal_entropy(routing).item(), 4)
        1.3863
    """
    return _smooth_entropy(mean_probability(routing))


def mutual_information(routing: Routing) -> Tensor:
    """``H(mean_t p_t) - mean_t H(p_t)``: how much a token says about its expert; 0 to ``log E``.

    It is large where each token is certain and the experts are used evenly; subtract it from a loss to get
    both.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.zeros(3, 4), moegate.recipes.switch())
        >>> round(mutual_information(routing).item(), 4)
        0.0
    """
    return marginal_entropy(routing) - token_entropy(routing)


def _smooth_entropy(shares: Tensor) -> Tensor:
    """``-Σ p log p`` over the last axis; a share of 0 adds 0, and 0 to the gradient."""
    # A share of 1 adds 0 as well, but the slope there is finite.
    return entropy(shares.masked_fill(shares == 0, 1.0))
