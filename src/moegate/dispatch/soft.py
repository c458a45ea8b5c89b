"""Soft dispatch: the experts' rows are slots, mixtures of the tokens of a sequence (Soft MoE)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.dispatch.plan import Plan
from moegate.precision import without_autocast
from moegate.records import Routing, SlotMixture


@dataclass(frozen=True, eq=False)
class SoftPlan(Plan):
    """``S`` slots for each of ``B`` sequences; the rows are expert-major, then by sequence, then by slot.

    Attributes:
        mixture: what each slot takes from each token, and each token from each slot.
    """

    mixture: SlotMixture

    def gather(self, hidden_TD: Tensor) -> Tensor:
        dispatch_BNS = self._by_sequence(self.mixture.dispatch)
        hidden_BND = self._by_sequence(hidden_TD).to(dispatch_BNS.dtype)
        with without_autocast(hidden_TD):  # the shares are too many to be narrow
            slots_BSD = dispatch_BNS.mT @ hidden_BND
        rows_EBpD: Tensor = slots_BSD.unflatten(1, (self.counts.shape[0], -1)).transpose(0, 1)
        return rows_EBpD.reshape(-1, hidden_TD.shape[1]).to(hidden_TD.dtype)

    def scatter(self, rows_RD: Tensor) -> Tensor:
        combine_BNS = self._by_sequence(self.mixture.combine)
        shape = (self.counts.shape[0], self.mixture.num_segments, -1, rows_RD.shape[1])
        slots_BSD = rows_RD.to(combine_BNS.dtype).view(shape).transpose(0, 1).flatten(1, 2)
        with without_autocast(rows_RD):
            out_BND: Tensor = combine_BNS @ slots_BSD
        return out_BND.reshape(self.num_tokens, rows_RD.shape[1]).to(rows_RD.dtype)

    def _by_sequence(self, values: Tensor) -> Tensor:
        length = self.num_tokens // self.mixture.num_segments
        return values.view(self.mixture.num_segments, length, values.shape[-1])


def soft_plan(routing: Routing) -> SoftPlan:
    """The plan of a soft routing.

    Example:
        >>> import torch, moegate
        >>> plan = soft_plan(moegate.route(torch.zeros(2, 4), moegate.recipes.soft_moe()))
        >>> plan.gather(torch.tensor([[2.0], [4.0]])).flatten().tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    if routing.slots is None:
        raise ValueError("This routing has no slots: use dispatch='sorted', 'padded' or 'dense'.")
    slots = routing.slots
    rows_per_expert = slots.num_segments * (slots.dispatch.shape[1] // routing.num_experts)
    counts_E = torch.full((routing.num_experts,), rows_per_expert, device=slots.dispatch.device)
    return SoftPlan(num_tokens=routing.num_tokens, counts=counts_E, offsets=counts_E.cumsum(0), mixture=slots)
