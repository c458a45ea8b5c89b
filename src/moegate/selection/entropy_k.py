"""Entropy-driven k: an uncertain router asks more experts."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import check_number, check_positive_integer
from moegate.probability import entropy, normalized
from moegate.records import EMPTY
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k


@dataclass(frozen=True, repr=False)
class EntropyK(Selection):
    """k from a ladder of entropy thresholds: ``counts[i]`` experts while the entropy is below ``thresholds[i]``.

    The entropy is that of the router's distribution over all experts, in nats (at most ``ln E``). With
    ``thresholds=(τ, 2τ)`` and ``counts=(1, 2, max_k)`` a certain router takes one expert, a less certain one two,
    an uncertain one ``max_k``. A NaN entropy takes the last count.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(EntropyK(thresholds=(0.5, 1.0), counts=(1, 2, 3)))
        >>> logits = torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.0, -9.0], [0.0, 0.0, 0.0]])
        >>> moegate.route(logits, rule).expert_index.tolist()
        [[0, -1, -1], [0, 1, -1], [0, 1, 2]]
    """

    kind: ClassVar[str] = "entropy_k"
    thresholds: tuple[float, ...] = (0.5, 1.0)
    counts: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        for name in ("thresholds", "counts"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list):
                raise TypeError(f"{name} must be a tuple of numbers, got {values!r}.")
            # A list would leave the rule without a hash.
            object.__setattr__(self, name, tuple(values))
        for threshold in self.thresholds:
            check_number("thresholds", threshold)
        if len(self.counts) != len(self.thresholds) + 1:
            raise ValueError(
                f"{len(self.thresholds)} thresholds make {len(self.thresholds) + 1} steps, but counts has "
                f"{len(self.counts)}: {self.counts}."
            )
        for count in self.counts:
            check_positive_integer("counts", count)
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError(f"thresholds must increase from each to the next, got {self.thresholds}.")

    def check(self, num_experts: int) -> None:
        check_top_k(max(self.counts), num_experts)

    def select(self, candidates: Candidates) -> Selected:
        entropy_T = entropy(normalized(candidates.shares))
        count_T = torch.full_like(entropy_T, self.counts[0], dtype=torch.int64)
        for threshold, count in zip(self.thresholds, self.counts[1:], strict=True):
            count_T = torch.where(entropy_T < threshold, count_T, count)
        index_TK = ordered_topk(candidates.ranking, max(self.counts))
        beyond_TK = torch.arange(index_TK.shape[-1], device=index_TK.device) >= count_T[:, None]
        return Selected(index_TK.masked_fill(beyond_TK, EMPTY))
