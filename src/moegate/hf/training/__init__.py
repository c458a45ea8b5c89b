"""Training with the routing in view: statistics, per-layer balance loss, bias update, alarms; for any loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moegate.hf.training.alarms import Alarms, RoutingWarning
from moegate.hf.training.bias_update import BiasUpdate
from moegate.hf.training.freezing import freeze_routers, router_is_frozen, train_routers_only
from moegate.hf.training.matrices import LoadFile
from moegate.hf.training.monitor import RoutingMonitor
from moegate.hf.training.summary import layer_readings, summarize
from moegate.hf.training.tally import Tally

if TYPE_CHECKING:
    from moegate.hf.training.callback import RoutingCallback

__all__ = [
    "Alarms",
    "BiasUpdate",
    "LoadFile",
    "RoutingCallback",
    "RoutingMonitor",
    "RoutingWarning",
    "Tally",
    "freeze_routers",
    "layer_readings",
    "router_is_frozen",
    "summarize",
    "train_routers_only",
]


def __getattr__(name: str) -> Any:
    """The callback loads transformers, so it is imported when it is first used."""
    if name == "RoutingCallback":
        return import_module("moegate.hf.training.callback").RoutingCallback
    raise AttributeError(f"module 'moegate.hf.training' has no attribute {name!r}")
