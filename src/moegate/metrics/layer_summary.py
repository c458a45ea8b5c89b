"""The scalars of one layer in one dictionary, for loggers."""

from moegate.metrics import confidence, dropping, evenness
from moegate.records import Routing


def summary(routing: Routing) -> dict[str, float]:
    """All scalar metrics of a routing, by name.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.eye(4), moegate.recipes.switch())
        >>> {name: round(value, 2) for name, value in summary(routing).items() if "violation" in name}
        {'max_violation': 0.0, 'min_violation': 0.0, 'mean_violation': 0.0}
    """
    load_E = routing.selected_load
    evenly = {metric.__name__: metric(load_E) for metric in _OF_LOAD}
    return evenly | {metric.__name__: metric(routing) for metric in _OF_ROUTING}


_OF_LOAD = (
    evenness.max_violation,
    evenness.min_violation,
    evenness.mean_violation,
    evenness.cv,
    evenness.gini,
    evenness.normalized_entropy,
    evenness.effective_experts,
    evenness.used_fraction,
    evenness.dead_fraction,
    evenness.jain,
    evenness.balancedness,
)

_OF_ROUTING = (
    dropping.drop_rate,
    dropping.fully_dropped_rate,
    dropping.experts_per_token,
    confidence.margin,
    confidence.router_z,
    confidence.token_entropy,
)
