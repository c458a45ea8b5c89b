"""Top-p: as many experts as it takes to cover a share of the probability."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_positive, check_positive_integer
from moegate.probability import normalized
from moegate.records import EMPTY
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k


@dataclass(frozen=True, repr=False)
class TopP(Selection):
    """The fewest best experts whose probabilities sum to at least ``p`` (arXiv 2403.07652).

    Every token gets at least one expert and at most ``max_k`` (all, when None). Probabilities are the unbiased
    scores divided by their sum; the order is that of the ranking.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(TopP(0.6))
        >>> moegate.route(torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), rule).expert_index.tolist()
        [[0, -1, -1], [0, 1, -1]]
    """

    kind: ClassVar[str] = "top_p"
    p: float = 0.6
    max_k: int | None = None

    def __post_init__(self) -> None:
        check_positive("p", self.p)
        if self.p > 1.0:
            raise ValueError(f"p must be greater than 0 and at most 1, got {self.p}.")
        if self.max_k is not None:
            check_positive_integer("max_k", self.max_k)

    def check(self, num_experts: int) -> None:
        if self.max_k is not None:
            check_top_k(self.max_k, num_experts)

    def select(self, candidates: Candidates) -> Selected:
        width = self.max_k or candidates.ranking.shape[-1]
        index_TK = ordered_topk(candidates.ranking, width)
        ordered_TK = normalized(candidates.shares).gather(-1, index_TK)
        # The sum of those before, not the sum minus the last, which rounding may move across p.
        covered_before_TK = functional.pad(ordered_TK.cumsum(dim=-1)[:, :-1], (1, 0))
        needed_TK = covered_before_TK < self.p
        needed_TK = needed_TK | (torch.arange(width, device=index_TK.device) == 0)
        # A sum that has once reached p stays there, whatever rounding does further along the row.
        needed_TK = needed_TK.to(torch.int64).cumprod(dim=-1).bool()
        return Selected(index_TK.masked_fill(~needed_TK, EMPTY))
