"""What dispatching by rows has in common: a row for each assignment, and the ways between rows and slots."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.dispatch.plan import Plan
from moegate.ops.combine import combine
from moegate.ops.permute import permute


@dataclass(frozen=True, eq=False)
class RowPlan(Plan):
    """Rows sorted by expert; within an expert by token, then by slot.

    Attributes:
        slot: ``[R]`` int64, the flat slot ``t · K + k`` of each row; -1 for an empty row.
        inverse: ``[T, K]`` int64, the row of each slot; -1 for an empty slot.
        slot_weights: ``[T, K]`` float32, the weight of each slot.
        weight_input: whether the weight multiplies the expert's input instead of its output.
    """

    slot: Tensor
    inverse: Tensor
    slot_weights: Tensor
    weight_input: bool

    @property
    def token(self) -> Tensor:
        """``[R]`` int64, the source token of each row; ``T`` where a row is empty."""
        top_k = max(self.inverse.shape[1], 1)
        return torch.where(self.slot < 0, self.num_tokens, torch.div(self.slot, top_k, rounding_mode="floor"))

    @property
    def weight(self) -> Tensor:
        """``[R]`` float32, the weight of each row; 0 where a row is empty."""
        weight_N1 = torch.cat([self.slot_weights.reshape(-1), self.slot_weights.new_zeros(1)])
        return weight_N1[self.slot]  # -1 is the last

    def gather(self, hidden_TD: Tensor) -> Tensor:
        return permute(hidden_TD, self.slot, self.inverse, self.slot_weights if self.weight_input else None)

    def scatter(self, rows_RD: Tensor) -> Tensor:
        return combine(rows_RD, self.slot, self.inverse, None if self.weight_input else self.slot_weights)
