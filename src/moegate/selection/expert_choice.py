"""Expert choice: the experts pick their tokens, so every expert is equally loaded."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from moegate.capacity import counted_capacity, exact_factor
from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_choice, check_positive
from moegate.records import EMPTY
from moegate.selection.candidates import Candidates, Selected, Selection


@dataclass(frozen=True, repr=False)
class ExpertChoice(Selection):
    """Each expert takes its ``ceil(tokens / experts · capacity_factor)`` best tokens (arXiv 2202.09368).

    A token may go to many experts or to none. Which ones depends on the tokens around it, later ones included:
    the routing is not causal, so it leaks the future in an autoregressive model. ``scope="sequence"`` lets only
    the tokens of one sequence (the last leading dimension of the logits) compete, ``"batch"`` all of them.
    Masked tokens do not compete, and the capacity counts real tokens only. Ties go to the earlier token.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(ExpertChoice(capacity_factor=1.0))
        >>> moegate.route(torch.tensor([[5.0, 4.0], [1.0, 0.0]]), rule).load.tolist()
        [1, 1]
    """

    kind: ClassVar[str] = "expert_choice"
    capacity_factor: float = 2.0
    scope: str = "batch"

    def __post_init__(self) -> None:
        check_positive("capacity_factor", self.capacity_factor)
        check_choice("scope", self.scope, ("batch", "sequence"))
        _ = self.exact_factor

    def select(self, candidates: Candidates) -> Selected:
        chosen_TE = self._chosen(candidates)
        width = _greatest_count(chosen_TE)
        index_TK = ordered_topk(candidates.ranking, width, excluded=~chosen_TE)
        return Selected(index_TK.masked_fill(~chosen_TE.gather(-1, index_TK), EMPTY))

    def _chosen(self, candidates: Candidates) -> Tensor:
        """``[T, E]`` bool: which tokens each expert takes."""
        num_tokens, num_experts = candidates.scores.shape
        segments = candidates.num_segments if self.scope == "sequence" else 1
        if num_tokens == 0:
            return torch.zeros_like(candidates.scores, dtype=torch.bool)
        # Experts compare tokens, so they compare scores: logits of different tokens have no common scale.
        scores_BET = candidates.selection_scores.view(segments, -1, num_experts).mT
        real_BET = self._real_tokens(candidates).view(segments, 1, -1).expand_as(scores_BET)
        length = scores_BET.shape[-1]
        numerator, denominator = self.exact_factor
        greatest = min(length, max(1, -(-length * numerator // (denominator * num_experts))))
        token_BEC = ordered_topk(scores_BET, greatest, excluded=~real_BET)
        room_B1 = counted_capacity(real_BET[:, 0].sum(dim=-1, keepdim=True), num_experts, self.exact_factor)
        has_room_B1C = (torch.arange(greatest, device=token_BEC.device) < room_B1)[:, None, :]
        taken_BEC = has_room_B1C & real_BET.gather(-1, token_BEC)
        chosen_BET = torch.zeros_like(scores_BET, dtype=torch.bool).scatter(-1, token_BEC, taken_BEC)
        return chosen_BET.mT.reshape(num_tokens, num_experts)

    def _real_tokens(self, candidates: Candidates) -> Tensor:
        if candidates.token_mask is not None:
            return candidates.token_mask
        return torch.ones(candidates.scores.shape[0], dtype=torch.bool, device=candidates.scores.device)

    @cached_property
    def exact_factor(self) -> tuple[int, int]:
        """The capacity factor as numerator and denominator, so that a compiler sees integers only."""
        return exact_factor(self.capacity_factor)


def _greatest_count(chosen_TE: Tensor) -> int:
    """The most experts that any token got, at least 1, so that the ``[T, K]`` view is as narrow as it can be."""
    if torch.compiler.is_compiling() or chosen_TE.numel() == 0:
        return chosen_TE.shape[-1]
    return max(1, int(chosen_TE.sum(dim=-1).max()))
