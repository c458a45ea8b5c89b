"""Random routing: a baseline that every learned router has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_positive_integer
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k
from moegate.selection.hashing import hashed_experts


@dataclass(frozen=True, repr=False)
class Random(Selection):
    """``top_k`` distinct experts, uniformly at random in training (THOR, arXiv 2110.04260).

    Evaluation draws nothing: the experts are then a fixed hash of the token's id if ``token_ids`` is given, else
    of the token's logits, so that the same row always goes to the same experts.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.randn(5, 4), moegate.recipes.random_routing(top_k=2), training=True)
        >>> routing.weights.tolist()[0]
        [0.5, 0.5]
    """

    kind: ClassVar[str] = "random"
    top_k: int = 2

    def __post_init__(self) -> None:
        check_positive_integer("top_k", self.top_k)

    def check(self, num_experts: int) -> None:
        check_top_k(self.top_k, num_experts)

    def select(self, candidates: Candidates) -> Selected:
        logits_TE = candidates.logits
        if candidates.training:
            # Of a fixed type: in a narrower default type, ties would favour the first experts.
            keys_TE = torch.rand(
                logits_TE.shape, generator=candidates.generator, device=logits_TE.device, dtype=torch.float32
            )
            return Selected(ordered_topk(keys_TE, self.top_k))
        ids_T = _row_fingerprint(logits_TE) if candidates.token_ids is None else candidates.token_ids
        return Selected(hashed_experts(ids_T, logits_TE.shape[-1], self.top_k, seed=0))


def _row_fingerprint(logits_TE: Tensor) -> Tensor:
    """An integer per row that depends on its bits alone; integer sums are exact in any order."""
    bits_TE = logits_TE.detach().float().contiguous().view(torch.int32).to(torch.int64)
    odd_multipliers_E = 2 * torch.arange(bits_TE.shape[-1], device=bits_TE.device) * 0x9E3779B1 + 1
    return (bits_TE * odd_multipliers_E).sum(dim=-1)
