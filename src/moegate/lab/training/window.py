"""What happened since the last log line: sums that give its record, and that a checkpoint carries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moegate import metrics
from moegate.records import Routing


@dataclass
class Window:
    """Sums over the steps since the last log line.

    `load` and `selected` are int64 `[L, E]`: assignments carried out, and chosen before any was dropped.

    Example:
        >>> window = Window.empty(num_layers=0, num_experts=0)
        >>> window.add_losses(2.0, 1.0)
        >>> window.record()["loss"]
        2.0
    """

    load: Tensor
    selected: Tensor
    loss_sum: float = 0.0
    balance_sum: float = 0.0
    steps: int = 0

    @classmethod
    def empty(cls, num_layers: int, num_experts: int) -> "Window":
        """Return a window that has seen nothing."""
        counts = torch.zeros(num_layers, num_experts, dtype=torch.int64)
        return cls(counts, counts.clone())

    def add_losses(self, loss: float, balance_loss: float) -> None:
        """Add the losses of one optimizer step."""
        self.loss_sum += loss
        self.balance_sum += balance_loss
        self.steps += 1

    def add_routings(self, routings: Sequence[Routing]) -> None:
        """Add the loads of one forward pass."""
        for layer, routing in enumerate(routings):
            self.load[layer] += routing.load
            self.selected[layer] += routing.selected_load

    def clear(self) -> None:
        """Forget everything."""
        self.load.zero_()
        self.selected.zero_()
        self.loss_sum, self.balance_sum, self.steps = 0.0, 0.0, 0

    def record(self) -> dict[str, Any]:
        """Return the means and the balance of the window as JSON values."""
        steps = max(1, self.steps)
        return {
            "loss": self.loss_sum / steps,
            "balance_loss": self.balance_sum / steps,
            **balance_numbers(self.load, self.selected),
            "load": self.load.tolist(),
        }


def balance_numbers(load_LE: Tensor, selected_LE: Tensor) -> dict[str, list[float]]:
    """Return MaxVio, utilisation and drop rate of each layer from its loads, after and before dropping.

    MaxVio is that of the choice: dropping would hide it. Utilisation is the share of experts that were chosen, the
    drop rate the share of assignments lost.

    Example:
        >>> balance_numbers(torch.tensor([[3, 1, 0, 0]]), torch.tensor([[4, 1, 0, 0]]))
        {'max_violation': [2.2], 'utilization': [0.5], 'drop_rate': [0.2]}
    """
    chosen_L = selected_LE.sum(dim=1)
    lost_L = chosen_L - load_LE.sum(dim=1)
    return {
        "max_violation": [metrics.max_violation(load) for load in selected_LE],
        "utilization": [metrics.used_fraction(load) for load in selected_LE],
        "drop_rate": (lost_L.double() / chosen_L.clamp(min=1)).tolist(),
    }
