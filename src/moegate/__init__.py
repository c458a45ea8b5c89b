"""moegate: the routing layer for Mixture-of-Experts models. One rule, one semantics, every device."""

from importlib.metadata import PackageNotFoundError, version

from moegate import (
    balance,
    config,
    estimators,
    gates,
    metrics,
    noise,
    recipes,
    records,
    scoring,
    selection,
    weighting,
)
from moegate.capacity import Capacity, capacity
from moegate.dispatch import Plan, combine, dispatch
from moegate.experts import Experts, SharedExperts
from moegate.layer import MoE
from moegate.records import Edges, Routing
from moegate.routing import route
from moegate.rule import RoutingRule
from moegate.weighting import Weighting

try:
    __version__ = version("moegate")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

__all__ = [
    "Capacity",
    "Edges",
    "Experts",
    "MoE",
    "Plan",
    "Routing",
    "RoutingRule",
    "SharedExperts",
    "Weighting",
    "__version__",
    "balance",
    "capacity",
    "combine",
    "config",
    "dispatch",
    "estimators",
    "gates",
    "metrics",
    "noise",
    "recipes",
    "records",
    "route",
    "scoring",
    "selection",
    "weighting",
]
