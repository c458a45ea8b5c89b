"""Sorted, dropless dispatch: one row per assignment, grouped by expert, in the order of the tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.dispatch.accumulate import add_rows, scaled
from moegate.dispatch.plan import Plan
from moegate.records import Routing


@dataclass(frozen=True, eq=False)
class SortedPlan(Plan):
    """Rows sorted by expert; within an expert by token, then by slot.

    Attributes:
        token: ``[R]`` int64, the source token of each row.
        weight: ``[R]`` float32; 0 for rows at the end that belong to no expert.
        slot: ``[R]`` int64, the flat slot ``t · K + k`` of each row.
        weight_input: whether the weight multiplies the expert's input instead of its output.
    """

    token: Tensor
    weight: Tensor
    slot: Tensor
    weight_input: bool

    def gather(self, hidden_TD: Tensor) -> Tensor:
        rows_RD = hidden_TD[self.token]
        return scaled(rows_RD, self.weight) if self.weight_input else rows_RD

    def scatter(self, rows_RD: Tensor) -> Tensor:
        return add_rows(rows_RD, self.token, None if self.weight_input else self.weight, self.num_tokens)


def sorted_plan(routing: Routing, *, weight_input: bool = False) -> SortedPlan:
    """The plan of a routing: a stable sort of its assignments by expert.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), moegate.recipes.mixtral(top_k=2))
        >>> plan = sorted_plan(routing)
        >>> plan.token.tolist(), plan.counts.tolist(), plan.slot.tolist()
        ([0, 1, 0, 1], [2, 2], [1, 2, 0, 3])
    """
    num_experts, top_k = routing.num_experts, routing.top_k
    expert_N = routing.expert_index.reshape(-1)
    # Empty slots sort behind the last expert.
    key_N = torch.where(expert_N < 0, num_experts, expert_N)
    counts_E = routing.load
    slot_R = torch.argsort(key_N, stable=True)
    if not (torch.compiler.is_compiling() or counts_E.is_meta):
        # Compiled, or without values, the rows keep their static number, and those of empty slots weigh nothing.
        slot_R = slot_R[: int(counts_E.sum())]
    return SortedPlan(
        num_tokens=routing.num_tokens,
        counts=counts_E,
        offsets=counts_E.cumsum(0),
        token=torch.div(slot_R, max(top_k, 1), rounding_mode="floor"),
        weight=routing.weights.reshape(-1)[slot_R],
        slot=slot_R,
        weight_input=weight_input,
    )
