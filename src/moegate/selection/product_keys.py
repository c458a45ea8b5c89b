"""Product keys: the logit of an expert is the sum of two, one of each half of what the gate gives."""

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_positive_integer
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k


@dataclass(frozen=True, repr=False)
class ProductKeyTopK(Selection):
    """The ``top_k`` best of ``n²`` experts by ``z[i · n + j] = x[i] + y[j]`` (PEER, arXiv 2407.04153).

    The gate gives ``2 · n`` logits a token, ``x`` first, then ``y``, so it has ``2 · sqrt(E)`` rows in place of ``E``.
    From there on all is as in ``TopK``, and all ``n²`` sums are made: the score, the bias and what losses and metrics
    read have a value for each expert. Doge splits the gate's output otherwise: ``gate(hidden).view(2, T, n)`` takes the
    halves from other tokens; to route as it does, pass ``torch.cat(tuple(view), dim=-1)``.

    Args:
        top_k: experts per token.

    Shapes: logits ``[..., 2 · n]`` → a routing among ``n²`` experts.

    Raises:
        ValueError: when the number of logits is odd, or the number of experts no square.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(ProductKeyTopK(2), score=moegate.scoring.SoftmaxSelected())
        >>> routing = moegate.route(torch.tensor([[0.0, 2.0, 0.5, 0.0]]), rule)
        >>> routing.num_experts, routing.expert_index.tolist()
        (4, [[2, 3]])
    """

    kind: ClassVar[str] = "product_key_top_k"
    top_k: int = 2

    def __post_init__(self) -> None:
        check_positive_integer("top_k", self.top_k)

    def check(self, num_experts: int) -> None:
        check_top_k(self.top_k, num_experts)

    def num_experts(self, num_logits: int) -> int:
        if num_logits % 2:
            raise ValueError(
                f"Product keys need two logits a key, one for each half, so an even number; the last dimension of "
                f"logits is {num_logits}."
            )
        return (num_logits // 2) ** 2

    def num_logits(self, num_experts: int) -> int:
        keys = isqrt(num_experts)
        if keys * keys != num_experts:
            raise ValueError(
                f"Product keys make a square of experts, and {num_experts} is none: choose {keys * keys} or "
                f"{(keys + 1) ** 2}."
            )
        return 2 * keys

    def expert_logits(self, logits_TE: Tensor) -> Tensor:
        wide = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
        first, second = wide.chunk(2, dim=-1)
        return (first[:, :, None] + second[:, None, :]).flatten(1)

    def select(self, candidates: Candidates) -> Selected:
        return Selected(ordered_topk(candidates.ranking, self.top_k))
