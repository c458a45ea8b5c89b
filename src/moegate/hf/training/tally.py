"""What the layers of a model sent where: exact counts of many forwards, summed over ranks in one go."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from moegate.balance.reduction import sum_over_ranks
from moegate.records import count_assignments

__all__ = ["Tally"]

_OTHERS = 3  # real tokens, their slots, and the sum of their entropies


class Tally:
    """Counts per layer: assignments of each expert, real tokens, their slots, and the entropy of their probabilities.

    Args:
        num_experts: of each layer.

    Example:
        >>> tally = Tally([4])
        >>> tally.add(0, torch.tensor([[0, 2], [-1, 2]]))
        >>> tally.load(0).tolist(), tally.tokens(0), tally.empty_fraction(0)
        ([1, 0, 2, 0], 2, 0.25)
    """

    def __init__(self, num_experts: Sequence[int]) -> None:
        self.num_experts = tuple(num_experts)
        # Counts are whole numbers far below 2^53, which float64 holds exactly; so one vector serves all.
        self._sums = [torch.zeros(size + _OTHERS, dtype=torch.float64) for size in self.num_experts]

    @torch.no_grad()
    def add(self, layer: int, expert_index: Tensor, real: Tensor | None = None, entropy: Tensor | None = None) -> None:
        """Count the assignments of a layer.

        Args:
            layer: its number.
            expert_index: ``[T, K]``, -1 in a slot without an expert.
            real: ``[T]`` bool, the tokens to count; None for all.
            entropy: ``[T]`` entropy of each token's probabilities, in nats.
        """
        width = self.num_experts[layer]
        if real is not None:
            expert_index = expert_index.masked_fill(~real[:, None], -1)
        # Some systems mark a slot without an expert by an index past the last one.
        expert_index = expert_index.masked_fill(expert_index >= width, -1).long()
        tokens = expert_index.new_tensor(expert_index.shape[0]) if real is None else real.sum()
        nats = torch.zeros((), device=expert_index.device) if entropy is None else _masked(entropy, real).sum()
        others = torch.stack([tokens.double(), tokens.double() * expert_index.shape[1], nats.double()])
        added = torch.cat([count_assignments(expert_index, width).double(), others])
        self._sums[layer] = self._sums[layer].to(added.device) + added

    def include(self, other: "Tally") -> None:
        """Add the counts of another tally of the same layers."""
        self._sums = [mine.to(theirs.device) + theirs for mine, theirs in zip(self._sums, other._sums, strict=True)]

    def over_ranks(self, process_group: dist.ProcessGroup | None = None) -> "Tally":
        """The tally of all ranks, by one ``all_reduce``; every rank of the group must ask."""
        total = Tally(self.num_experts)
        if not self._sums:
            return total
        device = self._sums[0].device
        flat = sum_over_ranks(torch.cat([sums.to(device) for sums in self._sums]), process_group)
        total._sums = list(flat.split([size + _OTHERS for size in self.num_experts]))
        return total

    def clear(self) -> None:
        """Forget all counts."""
        self._sums = [torch.zeros_like(sums) for sums in self._sums]

    def load(self, layer: int) -> Tensor:
        """``[E]`` int64: the assignments of each expert of a layer."""
        return self._sums[layer][: self.num_experts[layer]].long()

    def tokens(self, layer: int) -> int:
        """The real tokens that a layer saw."""
        return int(self._sums[layer][-3])

    def empty_fraction(self, layer: int) -> float:
        """The share of the tokens' slots that hold no expert: dropped, or left empty by the rule; NaN without any."""
        slots = float(self._sums[layer][-2])
        return 1.0 - float(self._sums[layer][: self.num_experts[layer]].sum()) / slots if slots else float("nan")

    def entropy(self, layer: int) -> float:
        """The mean entropy of a token's probabilities, in nats; NaN without any token."""
        tokens = self.tokens(layer)
        return float(self._sums[layer][-1]) / tokens if tokens else float("nan")


def _masked(values_T: Tensor, real_T: Tensor | None) -> Tensor:
    return values_T if real_T is None else values_T.masked_fill(~real_T, 0.0)
