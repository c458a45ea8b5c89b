"""What every trainer's callback says of the optimizer steps since its last log."""

from moegate.hf.training.alarms import Alarms
from moegate.hf.training.monitor import RoutingMonitor

__all__ = ["readings_since_log"]


def readings_since_log(monitor: RoutingMonitor, alarms: Alarms | None, step: int) -> dict[str, float]:
    """A fixed number of named numbers, the balance losses among them; ``alarms`` look at the same steps first.

    The window stays as it is, for a file of full counts.
    """
    readings = monitor.metrics()
    if losses := monitor.layer_losses():
        readings |= {"balance_loss/mean": sum(losses.values()) / len(losses), "balance_loss/max": max(losses.values())}
    if alarms is not None:
        alarms.look(monitor.window, step=step, spread={} if monitor.bias is None else monitor.bias.spread())
    return readings
