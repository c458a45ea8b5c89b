"""SparseMixer: experts drawn among those near the best, with weights whose gradient knows of the drawing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.estimators import straight_through
from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_positive, check_positive_integer
from moegate.scoring import gather_slots
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k

# The shares of a weight as the published code rounds them, so that weights agree beyond the fourth digit.
_THIRD, _REST = 0.3333, 0.6667
_KEPT_WITH = 0.25


@dataclass(frozen=True, repr=False)
class SparseMixer(Selection):
    """Slot by slot one expert of those near the best; training draws it (Phi-3.5-MoE; arXiv 2310.00811, 2409.12136).

    In every slot the experts of the slots before are out, and so are those that are far from the best that is left:
    ``(best - z) / max(|z|, best) > 2 · epsilon``. Evaluation takes the best; training draws one by the softmax over
    those that stay. Its weight is that softmax at the expert, so the weights of a token need not sum to 1. In training,
    an expert that is not the best of its slot has its whole weight with a probability of 1/4 and a third of it
    otherwise, and always the gradient of the whole: Heun's third-order estimate of the gradient through the drawing.

    Args:
        top_k: slots, 2 in Phi-3.5-MoE.
        epsilon: half the relative distance at which an expert is out (``router_jitter_noise`` in its configuration).

    Raises:
        ValueError: when ``top_k`` or ``epsilon`` is out of range.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[2.0, 1.97, 1.0, 0.0]]), moegate.recipes.phimoe())
        >>> routing.expert_index.tolist(), [round(weight, 3) for weight in routing.weights[0].tolist()]
        ([[0, 1]], [0.507, 1.0])
    """

    kind: ClassVar[str] = "sparse_mixer"
    top_k: int = 2
    epsilon: float = 1e-2

    def __post_init__(self) -> None:
        check_positive_integer("top_k", self.top_k)
        check_positive("epsilon", self.epsilon)

    def check(self, num_experts: int) -> None:
        check_top_k(self.top_k, num_experts)

    def select(self, candidates: Candidates) -> Selected:
        return self._slots(candidates, [None] * self.top_k)

    def replay(self, candidates: Candidates, index_TK: Tensor) -> Selected:
        return self._slots(candidates, list(index_TK.split(1, dim=-1)))

    def _slots(self, candidates: Candidates, given: list[Tensor | None]) -> Selected:
        """The slots one after the other; what is given is taken in place of what would be picked."""
        # Behind the experts a column for empty slots, which is cut off again.
        num_tokens, num_experts = candidates.logits.shape
        taken_TE = candidates.logits.new_zeros(num_tokens, num_experts + 1, dtype=torch.bool)
        picks, weights = [], []
        for slot, given_T1 in enumerate(given):
            far_TE = self._far(candidates.ranking, taken_TE[:, :-1])
            picked_T1 = self._picked(candidates, far_TE, taken_TE[:, :-1])
            pick_T1 = picked_T1 if given_T1 is None else given_T1
            weights.append(_weight(candidates, far_TE, pick_T1, slot))
            picks.append(pick_T1)
            taken_TE = taken_TE.scatter(-1, torch.where(pick_T1 < 0, num_experts, pick_T1), True)
        return Selected(torch.cat(picks, dim=-1), weights=torch.cat(weights, dim=-1))

    def _far(self, ranking_TE: Tensor, taken_TE: Tensor) -> Tensor:
        """``[T, E]`` bool: taken already, or too far from the best that is left."""
        best_T1 = ranking_TE.masked_fill(taken_TE, float("-inf")).amax(dim=-1, keepdim=True)
        distance_TE = (best_T1 - ranking_TE) / torch.maximum(ranking_TE.abs(), best_T1)
        return taken_TE | (distance_TE > 2 * self.epsilon)

    def _picked(self, candidates: Candidates, far_TE: Tensor, taken_TE: Tensor) -> Tensor:
        ranking_TE = candidates.ranking
        if not candidates.training:
            return ordered_topk(ranking_TE, 1, excluded=taken_TE)
        exponential_TE = ranking_TE.new_empty(ranking_TE.shape).exponential_(generator=candidates.generator)
        # A NaN is far from nothing and must still come last, but before what is taken.
        race_TE = ranking_TE.masked_fill(far_TE, float("-inf")) - exponential_TE.log()
        return ordered_topk(race_TE, 1, excluded=taken_TE)


def _weight(candidates: Candidates, far_TE: Tensor, pick_T1: Tensor, slot: int) -> Tensor:
    """``[T, 1]``: the softmax over those who are not far, at the pick."""
    logits_TE = candidates.logits
    # A recorded pick takes part, however far it is by the live logits.
    is_pick_TE = torch.arange(logits_TE.shape[-1], device=logits_TE.device) == pick_T1
    near_TE = logits_TE.masked_fill(far_TE & ~is_pick_TE, float("-inf"))
    nothing_T1 = (near_TE == float("-inf")).all(dim=-1, keepdim=True)
    shares_TE = near_TE.masked_fill(nothing_T1, 0.0).softmax(dim=-1)
    whole_T1 = gather_slots(shares_TE, pick_T1, fill=0.0).masked_fill(nothing_T1, 0.0)
    if not candidates.training:
        return whole_T1
    # The published code draws twice for all slots but the first; so does this, and a seed is worth the same in both.
    draws = whole_T1.new_empty(min(slot, 1) + 1, *whole_T1.shape, requires_grad=False)
    drawn_T1 = draws.uniform_(generator=candidates.generator)[-1]
    is_best_T1 = ordered_topk(shares_TE, 1) == pick_T1
    kept_T1 = (is_best_T1 | (drawn_T1 > 1 - _KEPT_WITH)).to(whole_T1.dtype)
    return straight_through(whole_T1 * (_THIRD + _REST * kept_T1), whole_T1)
