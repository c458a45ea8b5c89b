"""The nouns of the library: ``Routing`` (who goes where, with what weight) and what it is read through.

Shape legend, used in every tensor's name across the project:

``T`` tokens · ``D`` hidden size · ``E`` experts · ``K`` expert slots per token · ``G`` expert groups ·
``C`` expert capacity · ``F`` expert intermediate size · ``R`` routed rows (assignments) · ``S`` soft slots ·
``L`` layers · ``V`` vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moegate.probability import normalized
from moegate.readings import Readings

EMPTY = -1
"""The expert index of a slot that holds no expert."""


class Edges(NamedTuple):
    """The assignments of a routing as a list, ordered by token and then by slot.

    ``token`` and ``expert`` are int64 ``[R]``, ``weight`` is float32 ``[R]``. Every entry is a real
    assignment: empty slots, masked tokens and dropped assignments are not listed.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), moegate.recipes.mixtral(top_k=1))
        >>> token, expert, weight = routing.edges()
        >>> token.tolist(), expert.tolist()
        ([0, 1], [0, 1])
    """

    token: Tensor
    expert: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class SlotMixture:
    """How Soft MoE fills and empties its slots; ``S = num_experts * slots_per_expert``, expert-major.

    ``dispatch`` ``[T, S]``: column ``s`` holds the share of each token in slot ``s`` (columns sum to 1).
    ``combine`` ``[T, S]``: row ``t`` holds the share of each slot's output in token ``t`` (rows sum to 1).
    ``segment`` ``[T]`` int64 numbers the sequence in which a token mixes, from 0 to ``num_segments - 1``;
    each sequence has slots of its own.
    """

    dispatch: Tensor
    combine: Tensor
    segment: Tensor
    num_segments: int


@dataclass(frozen=True, eq=False)
class Routing:
    """Who goes where, with what weight: the result of every selection family.

    Attributes:
        num_experts: ``E``.
        batch_shape: the leading shape of the logits as they were passed, such as ``(batch, sequence)``;
            ``T`` is its product.
        readings: the dense values behind the choice; read them through the properties of the same names.
        expert_index: ``[T, K]`` int64, ``-1`` where a slot holds no expert.
        weights: ``[T, K]`` float32, 0 where a slot holds no expert.
        selected_index: ``[T, K]``, the choice before capacity dropped anything from it.
        token_mask: ``[T]`` bool, True for a real token; None when all tokens are real.
        noise_scale: ``[T, E]``, the standard deviation of a normal noise that was drawn; None otherwise.
        slots: the slot mixture of a soft routing; None for all others.
        shared_weights: ``[T, S]``, the weights of shared experts that are weighed together with the chosen ones; None
            where they have none.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[2.0, 1.0, 0.0]]), moegate.recipes.mixtral(top_k=2))
        >>> routing.expert_index.tolist(), routing.load.tolist()
        ([[0, 1]], [1, 1, 0])
    """

    num_experts: int
    batch_shape: tuple[int, ...]
    readings: Readings
    expert_index: Tensor
    weights: Tensor
    selected_index: Tensor
    token_mask: Tensor | None = None
    noise_scale: Tensor | None = None
    slots: SlotMixture | None = None
    shared_weights: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """``[T, E]`` float32 (float64 stays float64), clean: before any noise; the rows of masked tokens are 0."""
        return self.readings.logits

    @property
    def scores(self) -> Tensor:
        """``[T, E]``, the unbiased scores after noise; differentiable. Computed when first read."""
        return self.readings.scores

    @property
    def selection_scores(self) -> Tensor:
        """``[T, E]``, detached: the scores, or the logits for a softmax after the selection, plus the bias."""
        return self.readings.selection_scores

    @property
    def ranking(self) -> Tensor:
        """``[T, E]``, detached, what the selection ordered by: the logits when the score is monotone and there is no
        bias, otherwise the selection scores."""
        return self.readings.ranking

    @property
    def noisy_logits(self) -> Tensor | None:
        """``[T, E]``, the logits after noise; None when nothing was drawn."""
        return self.readings.noisy_logits

    @property
    def shares(self) -> Tensor | None:
        """``[T, E]``, what ``probabilities`` normalises when the scores themselves can't be (identity scores, which
        may be negative); None when it is the scores."""
        return self.readings.shares

    @property
    def num_tokens(self) -> int:
        """``T``, masked tokens included."""
        return self.expert_index.shape[0]

    @property
    def top_k(self) -> int:
        """``K``, the number of slots a token has here; some may be empty."""
        return self.expert_index.shape[1]

    @property
    def load(self) -> Tensor:
        """``[E]`` int64: assignments per expert that are really carried out, after any dropping."""
        return count_assignments(self.expert_index, self.num_experts)

    @property
    def selected_load(self) -> Tensor:
        """``[E]`` int64: assignments per expert as the router chose them, before any dropping."""
        return count_assignments(self.selected_index, self.num_experts)

    @property
    def real_tokens(self) -> Tensor:
        """Scalar int64 tensor: the number of tokens that are not masked."""
        if self.token_mask is None:
            # Not from host memory, which a GPU would wait for.
            return torch.full((), self.num_tokens, dtype=torch.int64, device=self.expert_index.device)
        return self.token_mask.sum()

    @property
    def probabilities(self) -> Tensor:
        """``[T, E]``: the scores of each token normalised to sum to 1; the rows of masked tokens are 0.

        Softmax scores are already normalised. Sigmoid, sqrt-softplus and ReLU scores are divided by their sum;
        a row without any positive score becomes uniform. Identity scores, which are logits, go through a softmax.
        """
        probabilities_TE = normalized(self.scores if self.shares is None else self.shares)
        if self.token_mask is None:
            return probabilities_TE
        return probabilities_TE.masked_fill(~self.token_mask[:, None], 0.0)

    def edges(self) -> Edges:
        """The assignments as a list ``(token, expert, weight)``, ordered by token, then by slot.

        Example:
            >>> import torch, moegate
            >>> routing = moegate.route(torch.tensor([[2.0, 1.0, 0.0]]), moegate.recipes.switch())
            >>> routing.edges().expert.tolist()
            [0]
        """
        token_R, slot_R = torch.nonzero(self.expert_index >= 0, as_tuple=True)
        return Edges(token_R, self.expert_index[token_R, slot_R], self.weights[token_R, slot_R])

    def detach(self) -> "Routing":
        """The same routing without a graph, to keep or to count from."""
        return self._each(Tensor.detach)

    def to(self, device: torch.device | str) -> "Routing":
        """The same routing on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Routing":
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        slots = self.slots
        if slots is not None:
            parts: dict[str, Any] = {
                name: change(value) for name, value in vars(slots).items() if isinstance(value, Tensor)
            }
            slots = replace(slots, **parts)
        return replace(self, **changed, slots=slots, readings=self.readings.each(change))

    def with_assignment(self, expert_index: Tensor, weights: Tensor) -> "Routing":
        """This routing with other assignments (``[T, K]`` each); what had been selected stays on record."""
        return replace(self, expert_index=expert_index, weights=weights)


def count_assignments(expert_index_TK: Tensor, num_experts: int) -> Tensor:
    """Assignments per expert, ``[E]`` int64; empty slots (``-1``) count nowhere.

    Example:
        >>> count_assignments(torch.tensor([[0, 2], [2, -1]]), 3).tolist()
        [1, 0, 2]
    """
    index_N = expert_index_TK.reshape(-1)
    valid_N = index_N >= 0
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=index_N.device)
    return counts_E.scatter_add(0, index_N.clamp(min=0), valid_N.to(torch.int64))
