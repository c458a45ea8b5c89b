"""What a selection sees, what it answers, and what all selections have in common."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.parts import Part
from moegate.readings import Readings
from moegate.records import SlotMixture


@dataclass(frozen=True, eq=False)
class Candidates:
    """All that a selection may look at. The dense values are computed when they are first looked at.

    Attributes:
        num_experts: ``E``.
        readings: the dense values, under the names of the properties below.
        noise_scale: ``[T, E]``, the standard deviation of the noise where it has one, or None.
        token_mask: ``[T]`` bool, True for a real token, or None.
        batch_shape: the leading shape of the logits; tokens of the last of these dimensions form a sequence.
        training: whether anything may be drawn.
        generator: where random numbers come from; None means PyTorch's default generator.
        token_ids: ``[T]`` int64, or None.
        hash_table: ``[V, K]`` int64, or None.
        shared_logits: ``[T, S]`` of shared experts, which no selection looks at, or None.
    """

    num_experts: int
    readings: Readings
    noise_scale: Tensor | None
    token_mask: Tensor | None
    batch_shape: tuple[int, ...]
    training: bool
    generator: torch.Generator | None
    token_ids: Tensor | None
    hash_table: Tensor | None
    shared_logits: Tensor | None = None

    @property
    def clean_logits(self) -> Tensor:
        """``[T, E]`` before noise."""
        return self.readings.logits

    @property
    def logits(self) -> Tensor:
        """``[T, E]`` after noise."""
        noisy_TE = self.readings.noisy_logits
        return self.readings.logits if noisy_TE is None else noisy_TE

    @property
    def scores(self) -> Tensor:
        """``[T, E]`` unbiased."""
        return self.readings.scores

    @property
    def shares(self) -> Tensor:
        """``[T, E]``, what a token's probabilities are made of when divided by their sum; mostly the scores."""
        shares_TE = self.readings.shares
        return self.readings.scores if shares_TE is None else shares_TE

    @property
    def selection_scores(self) -> Tensor:
        """``[T, E]`` scores (or logits, for a softmax after the selection) plus the bias."""
        return self.readings.selection_scores

    @property
    def ranking(self) -> Tensor:
        """``[T, E]`` what to order by: the logits where the score is monotone and there is no bias, else the
        selection scores."""
        return self.readings.ranking

    @property
    def num_segments(self) -> int:
        """The number of sequences: the product of all leading dimensions but the last."""
        return int(torch.Size(self.batch_shape[:-1]).numel())


@dataclass(frozen=True, eq=False)
class Selected:
    """The answer of a selection: ``index`` ``[T, K]`` int64 with ``-1`` in empty slots.

    A soft routing has slots of its own; for all others they are None. ``weights`` ``[T, K]`` are the raw weights of a
    selection that has its own; None leaves them to the score. ``excluded`` ``[T, E]`` marks the experts that the
    selection rules out for a token, whatever else happens to it.
    """

    index: Tensor
    weights: Tensor | None = None
    slots: SlotMixture | None = None
    excluded: Tensor | None = None


@dataclass(frozen=True, repr=False)
class Selection(Part):
    """Which experts a token goes to, given its candidates."""

    def check(self, num_experts: int) -> None:
        """Raises a ``ValueError`` when the selection can't be made among ``num_experts`` experts."""

    def num_experts(self, num_logits: int) -> int:
        """How many experts ``num_logits`` logits stand for; a soft routing has several slots an expert."""
        return num_logits

    def num_logits(self, num_experts: int) -> int:
        """How many logits a gate has to give for ``num_experts`` experts."""
        return num_experts

    def expert_logits(self, logits_TE: Tensor) -> Tensor:
        """``[T, E]``, one logit per expert (or slot), from what the gate gives."""
        return logits_TE

    def select(self, candidates: Candidates) -> Selected:
        """The chosen experts of every token, masked ones included: ``route`` empties their slots."""
        raise TypeError(f"{type(self).__name__} does not say how it selects.")

    def replay(self, candidates: Candidates, index_TK: Tensor) -> Selected:
        """The answer when the experts of every token are given, as recorded ones are, in place of ``select``."""
        return Selected(index_TK)


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raises when ``top_k`` distinct experts do not exist."""
    if top_k > num_experts:
        raise ValueError(
            f"top_k={top_k} exceeds the {num_experts} experts: choose top_k from 1 to {num_experts}, or add experts."
        )
