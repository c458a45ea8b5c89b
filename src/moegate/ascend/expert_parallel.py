"""Which rank holds which expert, as npu_moe_distribute_dispatch and combine lay them out."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moegate.ascend.exchange import exchange
from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import check_index, check_values
from moegate.ops.dispatch_plan import Places, dispatch_plan
from moegate.parts import check_integer, check_positive_integer
from moegate.records import EMPTY


@dataclass(frozen=True)
class ExpertParallel:
    """Shared experts on the first ranks, each on several of them; then the experts, an equal number on each rank.

    A *place* is an expert on a rank: one place on a rank of shared experts, ``local_experts`` on the others. Places
    are numbered by rank. Special experts (ids from ``moe_expert_num`` on) have no place.

    Attributes:
        world_size, rank: the ranks, and which this is.
        moe_expert_num: ``E``.
        shared_expert_num: the shared experts; read only if they have ranks.
        shared_expert_rank_num: the ranks that hold them, a multiple of them.
        special_expert_num: zero, copy and constant experts in all.

    Example:
        >>> layout = ExpertParallel(4, 1, moe_expert_num=6, shared_expert_num=1, shared_expert_rank_num=2)
        >>> layout.places_per_rank, layout.local_experts
        ([1, 1, 3, 3], 1)
        >>> layout.place_of_slots(torch.tensor([[0, 5]])).tolist()
        [[2, 7, 1]]
    """

    world_size: int
    rank: int
    moe_expert_num: int
    shared_expert_num: int = 1
    shared_expert_rank_num: int = 0
    special_expert_num: int = 0

    def check(self) -> None:
        """Raises unless the experts can be divided among the ranks."""
        check_positive_integer("ep_world_size", self.world_size)
        check_positive_integer("moe_expert_num", self.moe_expert_num)
        check_integer("shared_expert_num", self.shared_expert_num, least=0)
        check_integer("shared_expert_rank_num", self.shared_expert_rank_num, least=0)
        moe_ranks = self.world_size - self.shared_expert_rank_num
        if moe_ranks < 1 or self.moe_expert_num % moe_ranks:
            raise AscendOperatorError(
                INVALID,
                f"moe_expert_num={self.moe_expert_num} experts must be divisible among the ranks without shared "
                f"experts, ep_world_size - shared_expert_rank_num = {moe_ranks}.",
            )
        ranks = self.shared_expert_rank_num
        if ranks and (self.shared_expert_num == 0 or ranks % self.shared_expert_num):
            raise AscendOperatorError(
                INVALID,
                f"shared_expert_rank_num={ranks} must be a multiple of shared_expert_num={self.shared_expert_num}.",
            )

    @property
    def num_shared(self) -> int:
        """Shared experts that have ranks of their own."""
        return self.shared_expert_num if self.shared_expert_rank_num else 0

    @property
    def experts_per_rank(self) -> int:
        """The experts of a rank without shared experts."""
        return self.moe_expert_num // (self.world_size - self.shared_expert_rank_num)

    @property
    def local_experts(self) -> int:
        """The experts of this rank."""
        return self.places_per_rank[self.rank]

    @property
    def places_per_rank(self) -> list[int]:
        """The experts of each rank."""
        shared = self.shared_expert_rank_num
        return [1] * shared + [self.experts_per_rank] * (self.world_size - shared)

    @property
    def copies_per_shared(self) -> int:
        """The ranks that hold the same shared expert; each serves every so many-th rank."""
        return self.shared_expert_rank_num // self.shared_expert_num

    def most_rows(self, num_tokens: int, top_k: int, global_bs: int) -> int:
        """``A``: the most rows that this rank can receive, if no rank has more tokens than global_bs says."""
        all_tokens = global_bs or num_tokens * self.world_size
        if self.rank < self.shared_expert_rank_num:
            served = -(-self.world_size // self.copies_per_shared)
            return all_tokens // self.world_size * served
        return all_tokens * min(self.experts_per_rank, top_k)

    def place_of_slots(self, expert_ids: Tensor, active_TK: Tensor | None = None) -> Tensor:
        """``[T, K + shared experts]`` int64: where each slot goes, -1 for special experts and what is not active."""
        place_TK = torch.where(
            expert_ids < self.moe_expert_num, expert_ids.to(torch.int64) + self.shared_expert_rank_num, EMPTY
        )
        num_tokens = expert_ids.shape[0]
        token_active_T = torch.ones(num_tokens, dtype=torch.bool, device=expert_ids.device)
        if active_TK is not None:
            place_TK = torch.where(active_TK, place_TK, EMPTY)
            token_active_T = active_TK.any(dim=1)
        if not self.num_shared:
            return place_TK
        first_S = torch.arange(self.num_shared, device=expert_ids.device) * self.copies_per_shared
        shared_S = first_S + self.rank % self.copies_per_shared
        shared_TS = torch.where(token_active_T[:, None], shared_S, EMPTY)
        return torch.cat([place_TK, shared_TS], dim=1)

    def plan(self, expert_ids: Tensor, active_TK: Tensor | None) -> "SentRows":
        """Which rows this rank sends."""
        places = dispatch_plan(self.place_of_slots(expert_ids, active_TK), sum(self.places_per_rank))
        per_rank = places.counts.split(self.places_per_rank)
        return SentRows(places, [int(counts.sum()) for counts in per_rank])

    def received_counts(self, sent: "SentRows", group: ProcessGroup | None) -> Tensor:
        """``[world_size, local experts]`` int64: the rows from each rank for each expert of this one."""
        counts = exchange(sent.places.counts, self.places_per_rank, [self.local_experts] * self.world_size, group)
        return counts.view(self.world_size, self.local_experts)

    def check_expert_ids(self, expert_ids: object, num_tokens: int | str) -> None:
        """Raises unless these are ids ``[T, K]`` of experts that there are."""
        check_index("expert_ids", expert_ids, num_tokens, "experts per token")
        assert isinstance(expert_ids, Tensor)
        most = self.moe_expert_num + self.special_expert_num - 1
        check_values("expert_ids", expert_ids, 0, most, "experts, special ones behind the others")


@dataclass(frozen=True, eq=False)
class SentRows:
    """The rows that a rank sends: their places, sorted by rank and expert, and their number for each rank."""

    places: Places
    per_rank: list[int]


def active_slots(x_active_mask: Tensor | None, expert_ids: Tensor) -> Tensor | None:
    """The mask, one value per token or per slot, as ``[T, K]`` bool.

    Raises:
        TypeError, ValueError: when it is another type or shape.

    Example:
        >>> active_slots(torch.tensor([True, False]), torch.zeros(2, 2)).tolist()
        [[True, True], [False, False]]
    """
    if x_active_mask is None:
        return None
    if not isinstance(x_active_mask, Tensor) or x_active_mask.dtype != torch.bool:
        raise TypeError("x_active_mask must be a bool tensor, True for what takes part.")
    if x_active_mask.shape == expert_ids.shape:
        return x_active_mask
    if x_active_mask.shape == expert_ids.shape[:1]:
        return x_active_mask[:, None].expand_as(expert_ids)
    raise AscendOperatorError(
        INVALID,
        f"x_active_mask must be [{expert_ids.shape[0]}], one per token, or {list(expert_ids.shape)}, one per slot; "
        f"got {tuple(x_active_mask.shape)}.",
    )
