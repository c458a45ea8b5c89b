"""Grouped top-k: the best groups of experts first, then the best experts inside them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_choice, check_number, check_positive_integer
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k


@dataclass(frozen=True, repr=False)
class GroupedTopK(Selection):
    """Top-k within the ``groups_kept`` best of ``num_groups`` groups of neighbouring experts.

    A group stands for a device or a node, so that a token travels to few of them. ``group_score`` is ``"max"``
    (device-limited routing, DeepSeek-V2, arXiv 2405.04434) or ``"top2_sum"`` (node-limited, DeepSeek-V3,
    arXiv 2412.19437), where two equal maxima count twice. A NaN counts as ``-inf`` in the score of its group.

    Experts of dropped groups are excluded; they are never chosen, whatever the scores. A model that was made with
    them at a score of its own says so by ``dropped_score``: A.X K2 ranks them by 0, so that one of them goes before an
    expert of a kept group whose biased score is negative. Among themselves the lowest index goes first.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(GroupedTopK(2, num_groups=2, groups_kept=1, group_score="max"))
        >>> moegate.route(torch.tensor([[3.0, 0.0, 2.9, 2.8]]), rule).expert_index.tolist()
        [[0, 1]]
    """

    kind: ClassVar[str] = "grouped_top_k"
    top_k: int = 8
    num_groups: int = 8
    groups_kept: int = 4
    group_score: str = "top2_sum"
    dropped_score: float | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "num_groups", "groups_kept"):
            check_positive_integer(name, getattr(self, name))
        check_choice("group_score", self.group_score, ("max", "top2_sum"))
        if self.dropped_score is not None:
            check_number("dropped_score", self.dropped_score)
        if self.groups_kept > self.num_groups:
            raise ValueError(
                f"groups_kept={self.groups_kept} exceeds num_groups={self.num_groups}: keep at most all of them."
            )

    def check(self, num_experts: int) -> None:
        if num_experts % self.num_groups:
            raise ValueError(
                f"{num_experts} experts do not divide into num_groups={self.num_groups} equal groups: "
                f"choose one of {', '.join(str(n) for n in _divisors(num_experts))}."
            )
        group_size = num_experts // self.num_groups
        if self.group_score == "top2_sum" and group_size < 2:
            raise ValueError(
                f"group_score='top2_sum' needs groups of at least 2 experts; {num_experts} experts in "
                f"{self.num_groups} groups have {group_size}. Use group_score='max' or fewer groups."
            )
        if self.dropped_score is not None:
            check_top_k(self.top_k, num_experts)
        elif self.top_k > self.groups_kept * group_size:
            raise ValueError(
                f"top_k={self.top_k} exceeds the {self.groups_kept * group_size} experts left in "
                f"{self.groups_kept} kept groups of {group_size}."
            )

    def select(self, candidates: Candidates) -> Selected:
        group_TG = self._group_scores(candidates)
        dropped_TG = torch.ones_like(group_TG, dtype=torch.bool)
        # Not in place: torch.vmap knows no other way.
        dropped_TG = dropped_TG.scatter(-1, ordered_topk(group_TG, self.groups_kept), False)
        group_size = candidates.ranking.shape[-1] // self.num_groups
        dropped_TE = dropped_TG.repeat_interleave(group_size, dim=-1)
        if self.dropped_score is None:
            return Selected(ordered_topk(candidates.ranking, self.top_k, excluded=dropped_TE), excluded=dropped_TE)
        scores_TE = candidates.selection_scores
        # A NaN still ranks last, and what -inf masks is as far as ever.
        lifted_TE = dropped_TE & (scores_TE > float("-inf"))
        return Selected(ordered_topk(scores_TE.masked_fill(lifted_TE, self.dropped_score), self.top_k))

    def _group_scores(self, candidates: Candidates) -> Tensor:
        # The maximum may be taken of the logits, like the ranking itself; a sum has to be one of scores.
        values_TE = candidates.ranking if self.group_score == "max" else candidates.selection_scores
        values_TGe: Tensor = values_TE.unflatten(-1, (self.num_groups, -1))
        values_TGe = values_TGe.masked_fill(values_TGe.isnan(), float("-inf"))
        taken = 1 if self.group_score == "max" else 2
        return values_TGe.topk(taken, dim=-1).values.sum(dim=-1)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
