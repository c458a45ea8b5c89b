"""Dispatch and combine: the places by their definition, the sums in float64; on the device of what is judged."""

from typing import NamedTuple

import torch
from torch import Tensor

from moegate.bench.cases import Verdict
from moegate.bench.oracles.closeness import compare, float64


class Places(NamedTuple):
    """What a plan must say: ``counts [E]``, ``offsets [E]``, ``slot [R]``, ``inverse`` with ``R`` elements."""

    counts: Tensor
    offsets: Tensor
    slot: Tensor
    inverse: Tensor


class PlanOracle:
    """The right places of an index without empty slots, and what gathers and sums must give with them.

    Example:
        >>> oracle = PlanOracle(torch.tensor([[1], [0]]), 2)
        >>> two = torch.tensor([1, 1])
        >>> oracle.places_verdict(Places(two, two.cumsum(0), torch.tensor([1, 0]), torch.tensor([1, 0])))
        >>> oracle.places_verdict(Places(two, two.cumsum(0), torch.tensor([0, 1]), torch.tensor([1, 0])))
        'slot differs at 2 of 2 places'
    """

    def __init__(self, index_TK: Tensor, num_experts: int) -> None:
        expert_N = index_TK.reshape(-1).long()
        self.top_k = index_TK.shape[1]
        number_N = torch.arange(expert_N.numel(), device=index_TK.device)
        # Expert first, then slot: numbers of their own, so that any sort gives the stable order.
        self.slot_R = (expert_N * expert_N.numel() + number_N).sort().values % max(1, expert_N.numel())
        counts_E = torch.bincount(expert_N, minlength=num_experts)
        self._expected = {
            "counts": counts_E,
            "offsets": counts_E.cumsum(0),
            "slot": self.slot_R,
            "inverse": torch.empty_like(self.slot_R).scatter_(0, self.slot_R, number_N),
        }

    def places_verdict(self, places: Places) -> Verdict:
        """The verdict on a plan: every number must be right."""
        for name, expected in self._expected.items():
            found = getattr(places, name).reshape(-1)
            if found.shape != expected.shape:
                return f"{name} has {found.numel()} elements instead of {expected.numel()}"
            differing = int((found != expected).sum())
            if differing:
                return f"{name} differs at {differing} of {expected.numel()} places"
        return None

    def rows_verdict(self, rows_RD: Tensor, hidden_TD: Tensor) -> Verdict:
        """The verdict on gathered rows: copies, so exact."""
        right_RD = hidden_TD[self.slot_R // self.top_k]
        return None if torch.equal(rows_RD, right_RD) else "a row is not its token's"

    def sums_verdict(self, out_TD: Tensor, rows_RD: Tensor, weights_TK: Tensor) -> Verdict:
        """The verdict on the tokens' weighted sums."""
        place_TK = self._expected["inverse"].view(weights_TK.shape)
        expected_TD = out_TD.new_zeros((len(weights_TK), rows_RD.shape[1]), dtype=torch.float64)
        for k in range(self.top_k):
            expected_TD += float64(rows_RD[place_TK[:, k]]) * float64(weights_TK)[:, k, None]
        return compare("an output", out_TD, expected_TD, rows_RD.dtype)
