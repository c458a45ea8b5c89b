"""Padded dispatch: every expert gets the same number of rows, some of them empty."""

from dataclasses import dataclass

import torch

from moegate.dispatch.row_plan import RowPlan
from moegate.ops import dispatch_plan
from moegate.records import Routing


@dataclass(frozen=True, eq=False)
class PaddedPlan(RowPlan):
    """``C`` rows for each expert, so that the experts' input is a regular ``[E · C, D]``.

    Attributes:
        capacity: ``C``.
    """

    capacity: int


def padded_plan(routing: Routing, capacity: int | None = None, *, weight_input: bool = False) -> PaddedPlan:
    """The plan of a routing with ``capacity`` rows for each expert; by default as many as the fullest needs.

    It reads the fullest expert's load, with a given ``capacity`` too: on a GPU the host waits for that number, so that
    this plan can't be captured in a CUDA graph; the sorted one can.

    Raises:
        ValueError: when an expert has more assignments than ``capacity``: drop them by the rule's ``Capacity`` first.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), moegate.recipes.switch())
        >>> padded_plan(routing, capacity=3).token.tolist()
        [2, 2, 2, 0, 1, 2]
    """
    greatest = int(routing.load.max())
    capacity = max(1, greatest) if capacity is None else capacity
    if greatest > capacity:
        raise ValueError(
            f"An expert has {greatest} assignments and capacity is {capacity}: "
            "give the rule a Capacity that drops or reroutes them, or raise it."
        )
    places = dispatch_plan(routing.expert_index, routing.num_experts, capacity=capacity, fill=True)
    return PaddedPlan(
        num_tokens=routing.num_tokens,
        counts=torch.full_like(places.counts, capacity),
        offsets=places.offsets,
        slot=places.slot,
        inverse=places.inverse,
        slot_weights=routing.weights,
        weight_input=weight_input,
        capacity=capacity,
    )
