"""A second expert that training takes at random, in GShard's way or by sampling."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_choice
from moegate.records import EMPTY
from moegate.scoring import gather_slots
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k

_POLICIES = ("random", "sampling")


@dataclass(frozen=True, repr=False)
class SecondChoice(Selection):
    """The best expert, and a second one that training takes at random; evaluation takes the two best.

    ``"random"``: the second best stays with the probability ``min(1, 2 · s)`` of its score ``s`` (GShard, arXiv
    2006.16668). ``"sampling"``: the second is drawn from the others by the softmax of their logits. Of NLLB-MoE's
    ``second_expert_policy`` these are two, and ``TopK(2)`` is the third, ``"all"``; its own code draws in evaluation
    too.

    Args:
        policy: ``"random"`` or ``"sampling"``.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(SecondChoice("random"))
        >>> logits = torch.tensor([[9.0, 0.0, 0.0]])
        >>> moegate.route(logits, rule).expert_index.tolist()
        [[0, 1]]
        >>> moegate.route(logits, rule, training=True, generator=0).expert_index.tolist()
        [[0, -1]]
    """

    kind: ClassVar[str] = "second_choice"
    policy: str = "random"

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, _POLICIES)

    def check(self, num_experts: int) -> None:
        check_top_k(2, num_experts)

    def select(self, candidates: Candidates) -> Selected:
        if candidates.training and self.policy == "sampling":
            return Selected(self._sampled(candidates))
        index_TK = ordered_topk(candidates.ranking, 2)
        if candidates.training:
            second_T = gather_slots(candidates.scores.detach(), index_TK, fill=0.0)[:, 1]
            stays_T = 2 * second_T > torch.rand(
                second_T.shape, generator=candidates.generator, device=second_T.device, dtype=torch.float32
            )
            index_TK = torch.stack([index_TK[:, 0], torch.where(stays_T, index_TK[:, 1], EMPTY)], dim=-1)
        return Selected(index_TK)

    def _sampled(self, candidates: Candidates) -> Tensor:
        first_T1 = ordered_topk(candidates.ranking, 1)
        logits_TE = candidates.logits.detach()
        limits = torch.finfo(logits_TE.dtype)
        uniform_TE = torch.rand(
            logits_TE.shape, generator=candidates.generator, device=logits_TE.device, dtype=logits_TE.dtype
        )
        # In the open interval, as PyTorch's Gumbel distribution draws it.
        uniform_TE = limits.tiny + uniform_TE * (1.0 - limits.eps - limits.tiny)
        drawn_TE = logits_TE - (-uniform_TE.log()).log()
        is_first_TE = torch.zeros_like(drawn_TE, dtype=torch.bool).scatter(-1, first_T1, True)
        return torch.cat([first_T1, ordered_topk(drawn_TE, 1, excluded=is_first_TE)], dim=-1)
