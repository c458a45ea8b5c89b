"""Soft MoE: experts work on mixtures of tokens, and every token gets a mixture of the results."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.parts import check_choice, check_positive_integer
from moegate.records import SlotMixture
from moegate.selection.candidates import Candidates, Selected, Selection


@dataclass(frozen=True, repr=False)
class SoftSlots(Selection):
    """``slots_per_expert`` slots an expert, each a softmax-weighted mixture of the tokens (arXiv 2308.00951).

    The gate gives one logit per slot: ``[T, E · slots_per_expert]``, expert-major. A slot's input is the mixture of
    all tokens by a softmax over the tokens; a token's output is the mixture of all slots by a softmax over the
    slots. ``scope="sequence"`` mixes within each sequence (the last leading dimension of the logits), ``"batch"``
    over all tokens. The routing is not causal. ``weights`` is what a token takes from each expert in sum.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.zeros(3, 4), moegate.recipes.soft_moe(slots_per_expert=2))
        >>> routing.num_experts, routing.weights.tolist()[0]
        (2, [0.5, 0.5])
    """

    kind: ClassVar[str] = "soft_slots"
    slots_per_expert: int = 1
    scope: str = "sequence"

    def __post_init__(self) -> None:
        check_positive_integer("slots_per_expert", self.slots_per_expert)
        check_choice("scope", self.scope, ("batch", "sequence"))

    def replay(self, candidates: Candidates, index_TK: Tensor) -> Selected:
        raise ValueError(
            "expert_index has no meaning for soft routing, where every token has a share in every expert: "
            "leave it None."
        )

    def num_experts(self, num_logits: int) -> int:
        if num_logits % self.slots_per_expert:
            raise ValueError(
                f"Soft routing with slots_per_expert={self.slots_per_expert} needs one logit per slot, a multiple of "
                f"{self.slots_per_expert}; the last dimension of logits is {num_logits}."
            )
        return num_logits // self.slots_per_expert

    def num_logits(self, num_experts: int) -> int:
        return num_experts * self.slots_per_expert

    def select(self, candidates: Candidates) -> Selected:
        logits_TS = candidates.logits
        num_tokens, num_slots = logits_TS.shape
        segments = max(1, candidates.num_segments if self.scope == "sequence" else 1)
        combine_TS = logits_TS.softmax(dim=-1)
        dispatch_TS = _softmax_over_tokens(logits_TS, candidates.token_mask, segments)
        segment_T = torch.arange(segments, device=logits_TS.device).repeat_interleave(num_tokens // segments)
        if candidates.token_mask is not None:
            combine_TS = combine_TS.masked_fill(~candidates.token_mask[:, None], 0.0)
        index_E = torch.arange(num_slots // self.slots_per_expert, device=logits_TS.device)
        return Selected(
            index=index_E.repeat(num_tokens, 1),
            weights=combine_TS.unflatten(-1, (-1, self.slots_per_expert)).sum(dim=-1),
            slots=SlotMixture(dispatch_TS, combine_TS, segment_T, segments),
        )


def _softmax_over_tokens(logits_TS: Tensor, token_mask_T: Tensor | None, segments: int) -> Tensor:
    if token_mask_T is None:
        return logits_TS.view(segments, -1, logits_TS.shape[-1]).softmax(dim=1).view_as(logits_TS)
    masked_T1 = ~token_mask_T[:, None]
    hidden_TS = logits_TS.masked_fill(masked_T1, float("-inf"))
    shares_TS = hidden_TS.view(segments, -1, logits_TS.shape[-1]).softmax(dim=1).view_as(logits_TS)
    # A sequence without a real token is 0/0 throughout; masked tokens have no share anywhere.
    return shares_TS.masked_fill(masked_T1, 0.0)
