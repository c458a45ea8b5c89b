"""Sorted, dropless dispatch: one row per assignment, grouped by expert, in the order of the tokens."""

from dataclasses import dataclass

from moegate.dispatch.row_plan import RowPlan
from moegate.ops import dispatch_plan
from moegate.records import Routing


@dataclass(frozen=True, eq=False)
class SortedPlan(RowPlan):
    """As many rows as there are assignments; on a GPU, compiled or mapped, ``T · K``: the empty ones lie at the end."""


def sorted_plan(routing: Routing, *, weight_input: bool = False) -> SortedPlan:
    """The plan of a routing: a stable sort of its assignments by expert.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), moegate.recipes.mixtral(top_k=2))
        >>> plan = sorted_plan(routing)
        >>> plan.token.tolist(), plan.counts.tolist(), plan.slot.tolist()
        ([0, 1, 0, 1], [2, 2], [1, 2, 0, 3])
    """
    places = dispatch_plan(routing.expert_index, routing.num_experts)
    return SortedPlan(
        num_tokens=routing.num_tokens,
        counts=places.counts,
        offsets=places.offsets,
        slot=places.slot,
        inverse=places.inverse,
        slot_weights=routing.weights,
        weight_input=weight_input,
    )
