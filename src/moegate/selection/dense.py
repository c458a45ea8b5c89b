"""Dense: every token goes to every expert."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from moegate.selection.candidates import Candidates, Selected, Selection


@dataclass(frozen=True, repr=False)
class Dense(Selection):
    """All experts, in order of their index, weighted by their scores (a classic mixture of experts).

    The cost is that of all experts for every token; it is the upper reference for what sparsity gives away.

    Example:
        >>> import torch, moegate
        >>> moegate.route(torch.zeros(1, 4), moegate.RoutingRule(Dense())).weights.tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """

    kind: ClassVar[str] = "dense"

    def select(self, candidates: Candidates) -> Selected:
        num_tokens, num_experts = candidates.ranking.shape
        index_E = torch.arange(num_experts, device=candidates.ranking.device)
        return Selected(index_E.repeat(num_tokens, 1))
