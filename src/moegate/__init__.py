"""moegate: the routing layer for Mixture-of-Experts models. One rule, one semantics, every device."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from moegate import estimators, extra, gates, noise, recipes, records, scoring, selection, weighting
from moegate.capacity import Capacity, capacity
from moegate.dispatch import Plan, combine, dispatch
from moegate.experts import Experts, SharedExperts
from moegate.layer import MoE
from moegate.records import Edges, Routing
from moegate.routing import route
from moegate.rule import RoutingRule
from moegate.weighting import Weighting

if TYPE_CHECKING:
    from moegate import balance, config, metrics

try:
    __version__ = version("moegate")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

_READERS = ("balance", "config", "metrics")


def __getattr__(name: str) -> Any:
    """The readers of routings and configurations load when they are first used: the import stays quick."""
    if name in _READERS:
        return import_module(f"moegate.{name}")
    raise AttributeError(f"module 'moegate' has no attribute {name!r}")


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
    "extra",
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
