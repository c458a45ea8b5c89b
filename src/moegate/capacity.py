"""Capacity: how many assignments an expert takes, and what becomes of those beyond it."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from moegate.ops.ordered_topk import ordered_topk
from moegate.parts import Part, check_choice, check_integer, check_positive, check_positive_integer
from moegate.records import EMPTY, Routing, count_assignments
from moegate.scoring import gather_slots

_DROP_ORDERS = ("position", "weight", "random", "batch_priority")
_OVERFLOWS = ("drop", "reroute")
_SCOPES = ("batch", "sequence")
_MOMENTS = ("before", "after")


def capacity(
    num_tokens: int,
    num_experts: int,
    capacity_factor: float,
    top_k: int = 1,
    min_capacity: int = 1,
    multiple_of: int = 1,
) -> int:
    """The most assignments that one expert takes: ``ceil(num_tokens · top_k / num_experts · capacity_factor)``.

    The factor is taken as the decimal number that it prints as, so that 100 tokens, 10 experts and a factor of 1.1
    give 11, where binary arithmetic would give 12; past six decimals it is the nearest simple fraction, such as 4/3.

    Args:
        num_tokens: real tokens in the batch.
        num_experts: ``E``.
        capacity_factor: 1.0 is exactly enough for a perfect balance; 1.25 is usual in training.
        top_k: assignments per token.
        min_capacity: never less than this, and never less than 1.
        multiple_of: rounded up to a multiple of this, such as the tile of a matrix product.

    Raises:
        ValueError: when an argument is out of range. The capacity is never 0.

    Example:
        >>> capacity(num_tokens=64, num_experts=8, capacity_factor=1.25)
        10
        >>> capacity(num_tokens=64, num_experts=8, capacity_factor=1.25, top_k=2, multiple_of=16)
        32

    Source: GShard (arXiv 2006.16668), Switch (arXiv 2101.03961).
    """
    for name, value in (("num_experts", num_experts), ("top_k", top_k), ("multiple_of", multiple_of)):
        check_positive_integer(name, value)
    check_integer("num_tokens", num_tokens, least=0)
    check_integer("min_capacity", min_capacity)
    if min_capacity < 0:
        raise ValueError(f"min_capacity must not be negative, got {min_capacity}.")
    check_positive("capacity_factor", capacity_factor)
    numerator, denominator = exact_factor(capacity_factor)
    wanted = max(1, min_capacity, -(-num_tokens * top_k * numerator // (denominator * num_experts)))
    return -(-wanted // multiple_of) * multiple_of


def exact_factor(capacity_factor: float) -> tuple[int, int]:
    """A capacity factor as numerator and denominator; all the decimals of 4/3 would overflow int64.

    Example:
        >>> exact_factor(1.25), exact_factor(4 / 3)
        ((5, 4), (4, 3))
    """
    return Fraction(str(capacity_factor)).limit_denominator(1_000_000).as_integer_ratio()


def counted_capacity(count: Tensor, num_experts: int, factor: tuple[int, int]) -> Tensor:
    """``ceil(count / num_experts · factor)``, at least 1, for counts that are a tensor (int64, any shape).

    Nothing is transferred to the host, and the exact factor leaves nothing to rounding.

    Example:
        >>> counted_capacity(torch.tensor([64, 32, 0]), 8, (5, 4)).tolist()
        [10, 5, 1]
    """
    numerator, denominator = factor
    return (-(-count * numerator // (denominator * num_experts))).clamp(min=1)


@dataclass(frozen=True, repr=False)
class Capacity(Part):
    """A limit on the assignments of each expert.

    Args:
        factor: the capacity factor of ``capacity``: 1.0 is room for all assignments at perfect balance. Where k differs
            from token to token, the assignments that were made are counted.
        min_capacity: at least this many assignments each.
        multiple_of: capacity rounded up to a multiple of this.
        drop: who keeps a place in a full expert. ``"position"``: first choices before second choices, earlier
            tokens first (Switch, GShard). ``"weight"``: the greatest weights (Megatron's ``probs``). ``"random"``:
            a random order in training, position in evaluation, where nothing is drawn. ``"batch_priority"``: first
            choices first, tokens with the greatest best score first (V-MoE, arXiv 2106.05974).
        overflow: ``"drop"``: the assignment is lost, and the token passes by the residual connection alone if it
            has no other. ``"reroute"``: it goes to the token's next best expert that has room, among those that the
            selection did not rule out (dropped groups, scores below a threshold, logits of ``-inf``).
        places: exactly this many assignments each, whatever the batch, in place of what the factor gives
            (``expert_capacity`` of Switch and NLLB-MoE in Hugging Face configurations).
        eval_factor: the factor in evaluation, also in place of ``places``; None limits as in training.
        scope: ``"batch"``: all tokens ask for the same places. ``"sequence"``: each sequence (the last leading
            dimension of the logits) has places of its own.
        weigh: ``"before"``: the weights are those of all chosen experts, and what is dropped is lost. ``"after"``: they
            are made of the experts that are left, so that a renormalisation goes over these.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.switch(capacity_factor=1.0)
        >>> moegate.route(torch.tensor([[5.0, 0.0], [4.0, 0.0]]), rule).expert_index.tolist()
        [[0], [-1]]
    """

    kind: ClassVar[str] = "capacity"
    factor: float = 1.25
    min_capacity: int = 1
    multiple_of: int = 1
    drop: str = "position"
    overflow: str = "drop"
    places: int | None = None
    eval_factor: float | None = None
    scope: str = "batch"
    weigh: str = "before"

    def __post_init__(self) -> None:
        check_choice("drop", self.drop, _DROP_ORDERS)
        check_choice("overflow", self.overflow, _OVERFLOWS)
        check_choice("scope", self.scope, _SCOPES)
        check_choice("weigh", self.weigh, _MOMENTS)
        if self.places is not None:
            check_positive_integer("places", self.places)
        if self.eval_factor is not None:
            check_positive("eval_factor", self.eval_factor)
        if self.overflow == "reroute" and (self.scope, self.weigh) != ("batch", "before"):
            raise ValueError(
                "A capacity that reroutes looks for room in the whole batch and weighs the experts that were asked: "
                "leave scope='batch' and weigh='before', or use overflow='drop'."
            )
        capacity(1, 1, self.factor, 1, self.min_capacity, self.multiple_of)
        _ = self.exact_factor, self.exact_eval_factor

    def limit(self, num_tokens: int, num_experts: int, top_k: int, training: bool = True) -> int:
        """The capacity of each expert for a batch (or, by its scope, a sequence) of ``num_tokens`` tokens."""
        in_training = training or self.eval_factor is None
        if in_training and self.places is not None:
            return self.places
        factor = self.factor if self.eval_factor is None or in_training else self.eval_factor
        return capacity(num_tokens, num_experts, factor, top_k, self.min_capacity, self.multiple_of)

    def limit_of_assignments(self, assignments: Tensor, num_experts: int, training: bool = True) -> Tensor:
        """The capacity of each expert for a number of assignments that is a tensor: real tokens times k."""
        in_training = training or self.eval_factor is None
        if in_training and self.places is not None:
            return torch.full_like(assignments, self.places)
        factor = self.exact_factor if in_training else self.exact_eval_factor
        wanted = counted_capacity(assignments, num_experts, factor).clamp(min=self.min_capacity)
        return -(-wanted // self.multiple_of) * self.multiple_of

    @cached_property
    def exact_factor(self) -> tuple[int, int]:
        """The factor as numerator and denominator, worked out once so that a compiler sees integers only."""
        return exact_factor(self.factor)

    @cached_property
    def exact_eval_factor(self) -> tuple[int, int]:
        """The same of the factor in evaluation."""
        return exact_factor(self.factor if self.eval_factor is None else self.eval_factor)

    def keep(self, routing: Routing, order_N: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """``[T, K]`` bool: which assignments find a place in the given order; and the places of an expert, ``[]`` for
        the batch or ``[B]`` for each sequence."""
        index_TK, num_experts = routing.expert_index, routing.num_experts
        if self.scope == "batch" or index_TK.numel() == 0:
            limit = self.limit_of_assignments((index_TK >= 0).sum(), num_experts, training)
            return keep_within(index_TK, order_N, limit.expand(num_experts)), limit
        # Each sequence has experts of its own.
        num_sequences = int(torch.Size(routing.batch_shape[:-1]).numel())
        assignments_B = (index_TK >= 0).view(num_sequences, -1).sum(dim=-1)
        limit_B = self.limit_of_assignments(assignments_B, num_experts, training)
        first_T = torch.arange(num_sequences, device=index_TK.device).repeat_interleave(
            index_TK.shape[0] // num_sequences
        )
        own_TK = torch.where(index_TK < 0, index_TK, index_TK + num_experts * first_T[:, None])
        return keep_within(own_TK, order_N, limit_B.repeat_interleave(num_experts)), limit_B

    def assignment_order(self, routing: Routing, training: bool, generator: torch.Generator | None) -> Tensor:
        """``[T·K]``: the flat slots (``t · K + k``) in the order in which they are given places."""
        index_TK = routing.expert_index
        num_tokens, top_k = index_TK.shape
        slot_major_N = torch.arange(num_tokens * top_k, device=index_TK.device).view(num_tokens, top_k).mT.reshape(-1)
        if self.drop == "weight":
            return ordered_topk(routing.weights.detach().reshape(-1), num_tokens * top_k)
        if self.drop == "random" and training:
            return torch.randperm(num_tokens * top_k, generator=generator, device=index_TK.device)
        if self.drop == "batch_priority" and num_tokens and top_k:
            # Of the scores, not the weights: a renormalised weight no longer says how sure the router was.
            best_T = gather_slots(routing.scores.detach(), index_TK, fill=float("-inf")).amax(dim=-1)
            token_T = ordered_topk(best_T, num_tokens)
            return (token_T[None, :] * top_k + torch.arange(top_k, device=index_TK.device)[:, None]).reshape(-1)
        return slot_major_N


def keep_within(index_TK: Tensor, order_N: Tensor, room_E: Tensor) -> Tensor:
    """``[T, K]`` bool: the assignments that find a place when they are served in the given order.

    ``room_E`` is the number of places in each expert; empty slots never have one.

    Example:
        >>> keep_within(torch.tensor([[0], [0], [1]]), torch.tensor([2, 1, 0]), torch.tensor([1, 1])).tolist()
        [[False], [True], [True]]
    """
    num_experts = room_E.shape[0]
    expert_N = index_TK.reshape(-1)[order_N]
    expert_N = torch.where(expert_N < 0, num_experts, expert_N)
    by_expert_N = torch.argsort(expert_N, stable=True)
    sorted_N = expert_N[by_expert_N]
    first_of_expert_E = torch.searchsorted(sorted_N, torch.arange(num_experts + 1, device=sorted_N.device))
    place_N = torch.arange(sorted_N.shape[0], device=sorted_N.device) - first_of_expert_E[sorted_N]
    room_of_none = room_E.new_zeros(1)
    kept_N = place_N < torch.cat([room_E, room_of_none])[sorted_N]
    result_N = torch.zeros_like(kept_N)
    result_N[order_N[by_expert_N]] = kept_N
    return result_N.view_as(index_TK)


def reroute(
    index_TK: Tensor,
    kept_TK: Tensor,
    ranking_TE: Tensor,
    order_N: Tensor,
    limit: Tensor,
    excluded_TE: Tensor | None = None,
) -> Tensor:
    """``[T, K]``: the assignments after those without a place went to the next best expert that has one.

    Slot by slot, every token without a place asks its best-ranked expert that has room and that it does not hold
    yet; those who find it full ask on. What finds no room at all becomes ``-1``, and nobody asks an expert that is
    ``excluded``.

    Example:
        >>> index, kept = torch.tensor([[0], [0]]), torch.tensor([[True], [False]])
        >>> ranking = torch.tensor([[3.0, 2.0], [3.0, 2.0]])
        >>> reroute(index, kept, ranking, torch.tensor([0, 1]), torch.tensor(1)).tolist()
        [[0], [1]]
    """
    num_tokens, top_k = index_TK.shape
    place_in_order_TK = torch.argsort(order_N).view(num_tokens, top_k)
    result_TK = index_TK.masked_fill(~kept_TK, EMPTY)
    without_place_TK = (index_TK >= 0) & ~kept_TK
    for slot in range(top_k):
        order_T = torch.argsort(place_in_order_TK[:, slot])
        pending_T = without_place_TK[:, slot]
        while bool(pending_T.any()):
            # Every pass fills an expert, or places or gives up all who ask: at most E passes.
            room_E = limit - count_assignments(result_TK, ranking_TE.shape[1])
            closed_TE = _held_experts(result_TK, ranking_TE) | (room_E <= 0)
            if excluded_TE is not None:
                closed_TE = closed_TE | excluded_TE
            asked_T1 = ordered_topk(ranking_TE, 1, excluded=closed_TE)
            asking_T = pending_T & ~closed_TE.gather(1, asked_T1)[:, 0]
            request_T1 = asked_T1.masked_fill(~asking_T[:, None], EMPTY)
            placed_T = keep_within(request_T1, order_T, room_E.clamp(min=0))[:, 0]
            result_TK[:, slot] = torch.where(placed_T, asked_T1[:, 0], result_TK[:, slot])
            pending_T = asking_T & ~placed_T
    return result_TK


def _held_experts(index_TK: Tensor, ranking_TE: Tensor) -> Tensor:
    """``[T, E]`` bool: the experts that each token has."""
    num_tokens, num_experts = ranking_TE.shape
    # Empty slots land in one column more, which is cut off again.
    held_TE = torch.zeros(num_tokens, num_experts + 1, dtype=torch.bool, device=index_TK.device)
    held_TE.scatter_(1, torch.where(index_TK < 0, num_experts, index_TK), True)
    return held_TE[:, :num_experts]
