"""Threshold: every expert whose score is high enough."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_integer, check_number, check_positive_integer
from moegate.records import EMPTY
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k


@dataclass(frozen=True, repr=False)
class Threshold(Selection):
    """The experts with ``score + bias > threshold``, best first; at least ``min_k``, at most ``max_k``.

    With ReLU scores and a threshold of 0 this is ReLU routing (ReMoE, arXiv 2412.14711). A bias of ``-τ`` per
    expert and a threshold of 0 gives each expert a threshold of its own (expert-threshold routing,
    arXiv 2603.11535). With ``min_k=0`` a token may go to no expert at all.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(Threshold(0.4, min_k=0), score=moegate.scoring.Sigmoid())
        >>> moegate.route(torch.tensor([[3.0, 0.0, -3.0], [-3.0, -3.0, -3.0]]), rule).expert_index.tolist()
        [[0, 1, -1], [-1, -1, -1]]
    """

    kind: ClassVar[str] = "threshold"
    threshold: float = 0.0
    min_k: int = 1
    max_k: int | None = None

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold)
        check_integer("min_k", self.min_k, least=0)
        if self.max_k is not None:
            check_positive_integer("max_k", self.max_k)
            if self.max_k < self.min_k:
                raise ValueError(f"max_k={self.max_k} is less than min_k={self.min_k}.")

    def check(self, num_experts: int) -> None:
        check_top_k(max(self.min_k, self.max_k or 0), num_experts)

    def select(self, candidates: Candidates) -> Selected:
        width = self.max_k or candidates.ranking.shape[-1]
        index_TK = ordered_topk(candidates.ranking, width)
        above_TE = candidates.selection_scores > self.threshold
        always_TK = torch.arange(width, device=index_TK.device) < self.min_k
        kept_TK = above_TE.gather(-1, index_TK) | always_TK
        return Selected(index_TK.masked_fill(~kept_TK, EMPTY), excluded=~above_TE)
