"""Training with the routing in view: statistics, per-layer balance loss, bias update, alarms; for any loop."""

from moegate.hf.training.bias_update import BiasUpdate
from moegate.hf.training.freezing import freeze_routers, router_is_frozen, train_routers_only
from moegate.hf.training.monitor import RoutingMonitor
from moegate.hf.training.summary import layer_readings, summarize
from moegate.hf.training.tally import Tally

__all__ = [
    "BiasUpdate",
    "RoutingMonitor",
    "Tally",
    "freeze_routers",
    "layer_readings",
    "router_is_frozen",
    "summarize",
    "train_routers_only",
]
