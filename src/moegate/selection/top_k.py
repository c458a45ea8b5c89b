"""Top-k: the k best experts of a token."""

from dataclasses import dataclass
from typing import ClassVar

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_positive_integer
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k


@dataclass(frozen=True, repr=False)
class TopK(Selection):
    """The ``top_k`` best experts, best first (Shazeer 2017, arXiv 1701.06538).

    Example:
        >>> import torch, moegate
        >>> moegate.route(torch.tensor([[0.0, 2.0, 1.0]]), moegate.RoutingRule(TopK(2))).expert_index.tolist()
        [[1, 2]]
    """

    kind: ClassVar[str] = "top_k"
    top_k: int = 2

    def __post_init__(self) -> None:
        check_positive_integer("top_k", self.top_k)

    def check(self, num_experts: int) -> None:
        check_top_k(self.top_k, num_experts)

    def select(self, candidates: Candidates) -> Selected:
        return Selected(ordered_topk(candidates.ranking, self.top_k))
