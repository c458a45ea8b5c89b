"""Dispatch and combine: the places by a stable sort in NumPy, the sums in float64."""

from typing import NamedTuple

import numpy as np
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
        expert_N = index_TK.numpy().reshape(-1)
        self.top_k = index_TK.shape[1]
        self.slot_R = np.argsort(expert_N, kind="stable")
        counts_E = np.bincount(expert_N, minlength=num_experts)
        self._expected = {
            "counts": counts_E,
            "offsets": counts_E.cumsum(),
            "slot": self.slot_R,
            "inverse": np.argsort(self.slot_R),
        }

    def places_verdict(self, places: Places) -> Verdict:
        """The verdict on a plan: every number must be right."""
        for name, expected in self._expected.items():
            found = getattr(places, name).numpy().reshape(-1)
            if found.shape != expected.shape:
                return f"{name} has {found.size} elements instead of {expected.size}"
            differing = int((found != expected).sum())
            if differing:
                return f"{name} differs at {differing} of {expected.size} places"
        return None

    def rows_verdict(self, rows_RD: Tensor, hidden_TD: Tensor) -> Verdict:
        """The verdict on gathered rows: copies, so exact."""
        right_RD = hidden_TD[torch.from_numpy(self.slot_R // self.top_k)]
        return None if torch.equal(rows_RD, right_RD) else "a row is not its token's"

    def sums_verdict(self, out_TD: Tensor, rows_RD: Tensor, weights_TK: Tensor) -> Verdict:
        """The verdict on the tokens' weighted sums."""
        weighted_RD = float64(rows_RD) * float64(weights_TK).reshape(-1)[self.slot_R, None]
        expected_TD = np.zeros((weights_TK.shape[0], rows_RD.shape[1]))
        np.add.at(expected_TD, self.slot_R // self.top_k, weighted_RD)
        return compare("an output", out_TD, expected_TD, rows_RD.dtype)
