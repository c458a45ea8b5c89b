"""The sum over a token's slots, where more goes into it than rows and weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.ascend.rows import wide
from moegate.ascend.special_experts import SpecialExperts


@dataclass(frozen=True, eq=False)
class SlotTerms:
    """What each slot adds to its token: ``scale · (row + bias)``, with special experts in place of rows.

    Attributes:
        rows: ``[R, D]``.
        index: ``[T, K]``, the row of each slot. Negative: the row is 0. Beyond the rows: the slot adds nothing at all.
        scales: ``[T, K]``; None for 1.
        experts: ``[T, K]``, for ``bias`` and ``special``.
        bias: ``[E, D]``; an expert beyond them has none.
        special: the experts without weights.
        active: ``[T, K]`` bool, the slots that count; None for all.

    Example:
        >>> terms = SlotTerms(torch.tensor([[1.0], [2.0]]), torch.tensor([[0, 1], [1, -1]]))
        >>> terms.added_to(torch.tensor([[10.0], [20.0]])).flatten().tolist()
        [13.0, 22.0]
    """

    rows: Tensor
    index: Tensor
    scales: Tensor | None = None
    experts: Tensor | None = None
    bias: Tensor | None = None
    special: SpecialExperts | None = None
    active: Tensor | None = None

    def added_to(self, start_TD: Tensor) -> Tensor:
        """The start plus the terms of all slots, one after the other, in float32 (float64 in float64)."""
        total_TD = start_TD.to(wide(self.rows.dtype))
        for k in range(self.index.shape[1]):
            term_TD, counts_T = self._term(k)
            total_TD = torch.where(counts_T[:, None], total_TD + term_TD, total_TD)
        return total_TD

    def _term(self, k: int) -> tuple[Tensor, Tensor]:
        """What slot ``k`` of each token adds, and for which tokens it adds anything."""
        index_T, num_rows = self.index[:, k], self.rows.shape[0]
        counts_T = index_T < num_rows
        has_row_T = (index_T >= 0) & counts_T
        if num_rows:
            found_TD = self.rows[index_T.clamp(0, num_rows - 1)].to(wide(self.rows.dtype))
            # What a slot without a row would read may be NaN: it must reach neither the sum nor the scale's gradient.
            row_TD = torch.where(has_row_T[:, None], found_TD, 0.0)
        else:
            # A sum of no rows is 0 and knows its rows: the exchange they came by must have a backward on every rank.
            row_TD = self.rows.to(wide(self.rows.dtype)).sum(dim=0).expand(index_T.shape[0], -1)
        if self.special is not None and self.experts is not None:
            expert_T = self.experts[:, k]
            row_TD = self.special.instead(expert_T, row_TD)
            counts_T = (counts_T | self.special.needs_no_row(expert_T)) & ~self.special.gives_nothing(expert_T)
        if self.bias is not None and self.experts is not None:
            row_TD = row_TD + self._bias_rows(self.experts[:, k], self.bias.to(row_TD.dtype))
        if self.scales is not None:
            row_TD = row_TD * self.scales[:, k, None].to(row_TD.dtype)
        return row_TD, counts_T if self.active is None else counts_T & self.active[:, k]

    def _bias_rows(self, expert_T: Tensor, bias_ED: Tensor) -> Tensor:
        num_experts = bias_ED.shape[0]
        known_T = (expert_T >= 0) & (expert_T < num_experts)
        if num_experts == 0:
            return bias_ED.new_zeros(expert_T.shape[0], bias_ED.shape[1])
        return torch.where(known_T[:, None], bias_ED[expert_T.clamp(0, num_experts - 1)], 0.0)
