"""Padded dispatch: every expert gets the same number of rows, some of them empty."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.dispatch.accumulate import add_rows, scaled
from moegate.dispatch.plan import Plan
from moegate.dispatch.sorted_rows import sorted_plan
from moegate.records import Routing


@dataclass(frozen=True, eq=False)
class PaddedPlan(Plan):
    """``C`` rows for each expert, so that the experts' input is a regular ``[E · C, D]``.

    Attributes:
        capacity: ``C``.
        token: ``[E · C]`` int64, the source token of each row; ``T`` where a row is empty.
        weight: ``[E · C]`` float32, 0 where a row is empty.
        weight_input: whether the weight multiplies the expert's input instead of its output.
    """

    capacity: int
    token: Tensor
    weight: Tensor
    weight_input: bool

    def gather(self, hidden_TD: Tensor) -> Tensor:
        with_empty_TD = torch.cat([hidden_TD, hidden_TD.new_zeros(1, hidden_TD.shape[1])])
        rows_RD = with_empty_TD[self.token]
        return scaled(rows_RD, self.weight) if self.weight_input else rows_RD

    def scatter(self, rows_RD: Tensor) -> Tensor:
        weight_R = None if self.weight_input else self.weight
        return add_rows(rows_RD, self.token, weight_R, self.num_tokens + 1)[:-1]


def padded_plan(routing: Routing, capacity: int | None = None, *, weight_input: bool = False) -> PaddedPlan:
    """The plan of a routing with ``capacity`` rows for each expert; by default as many as the fullest needs.

    Raises:
        ValueError: when an expert has more assignments than ``capacity``: drop them by the rule's ``Capacity`` first.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), moegate.recipes.switch())
        >>> padded_plan(routing, capacity=3).token.tolist()
        [2, 2, 2, 0, 1, 2]
    """
    rows = sorted_plan(routing)
    greatest = int(rows.counts.max())
    capacity = max(1, greatest) if capacity is None else capacity
    if greatest > capacity:
        raise ValueError(
            f"An expert has {greatest} assignments and capacity is {capacity}: "
            "give the rule a Capacity that drops or reroutes them, or raise it."
        )
    num_experts = routing.num_experts
    num_rows = int(rows.counts.sum())
    expert_R = torch.arange(num_experts, device=rows.token.device).repeat_interleave(rows.counts)
    first_R = (rows.offsets - rows.counts)[expert_R]
    place_R = expert_R * capacity + torch.arange(num_rows, device=rows.token.device) - first_R
    token_P = torch.full((num_experts * capacity,), routing.num_tokens, device=rows.token.device)
    counts_E = torch.full_like(rows.counts, capacity)
    return PaddedPlan(
        num_tokens=routing.num_tokens,
        counts=counts_E,
        offsets=counts_E.cumsum(0),
        capacity=capacity,
        token=token_P.index_copy(0, place_R, rows.token),
        weight=rows.weight.new_zeros(num_experts * capacity).index_copy(0, place_R, rows.weight),
        weight_input=weight_input,
    )
