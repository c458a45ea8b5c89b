"""Hash routing: the token's id decides, not what the gate has learned."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.arguments import check_device
from moegate.ops.ordered_topk import topk_by_key
from moegate.ops.synchronization import may_look
from moegate.parts import check_integer, check_positive_integer
from moegate.selection.candidates import Candidates, Selected, Selection, check_top_k

# Shifted past the token ids, a seed still has to fit into int64.
_SEEDS = 1 << 40


@dataclass(frozen=True, repr=False)
class Hash(Selection):
    """``top_k`` distinct experts from a table or a hash of the token id (Roller et al. 2021, arXiv 2106.04426).

    ``route`` takes ``token_ids`` and, for a table (DeepSeek-V4's first layers), ``hash_table [V, K]``: row ``v``
    lists the experts of token id ``v``. Without a table the experts are a fixed mix of the id and ``seed``. A hash
    function of your own is a table too, its values for ``torch.arange(V)``: that can be stored, a function can not.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(Hash(top_k=1), score=moegate.scoring.Constant())
        >>> table = torch.tensor([[2], [0]])
        >>> routing = moegate.route(torch.zeros(3, 4), rule, token_ids=torch.tensor([1, 0, 1]), hash_table=table)
        >>> routing.expert_index.flatten().tolist()
        [0, 2, 0]
    """

    kind: ClassVar[str] = "hash"
    top_k: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive_integer("top_k", self.top_k)
        check_integer("seed", self.seed)
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f"seed must lie between 0 and {_SEEDS - 1}, got {self.seed}.")

    def check(self, num_experts: int) -> None:
        check_top_k(self.top_k, num_experts)

    def select(self, candidates: Candidates) -> Selected:
        if candidates.token_ids is None:
            raise ValueError(
                "Hash routing goes by token ids: pass token_ids, one integer a token, "
                "to route(...) or to the layer's forward."
            )
        num_experts, ids_T = candidates.ranking.shape[-1], candidates.token_ids
        if candidates.token_mask is not None:
            # Padding often holds an id, such as -100, that no table has.
            ids_T = ids_T.masked_fill(~candidates.token_mask, 0)
        if candidates.hash_table is None:
            return Selected(hashed_experts(ids_T, num_experts, self.top_k, self.seed))
        self._check_table(candidates.hash_table, ids_T)
        return Selected(self._look_up(ids_T, candidates.hash_table, num_experts))

    def _check_table(self, table_VK: object, like: Tensor) -> None:
        if not isinstance(table_VK, Tensor) or table_VK.is_floating_point() or table_VK.dtype == torch.bool:
            got = table_VK.dtype if isinstance(table_VK, Tensor) else type(table_VK).__name__
            raise TypeError(f"hash_table must be an integer tensor [vocabulary, top_k={self.top_k}], got {got}.")
        if table_VK.ndim != 2 or table_VK.shape[1] != self.top_k:
            raise ValueError(
                f"hash_table must have the shape [vocabulary, top_k={self.top_k}], got {tuple(table_VK.shape)}."
            )
        check_device("hash_table", table_VK, like)

    def _look_up(self, token_ids_T: Tensor, table_VK: Tensor, num_experts: int) -> Tensor:
        if token_ids_T.numel() == 0 or not (may_look(token_ids_T) and may_look(table_VK)):
            return table_VK[token_ids_T].to(torch.int64)
        if int(token_ids_T.min()) < 0 or int(token_ids_T.max()) >= table_VK.shape[0]:
            raise ValueError(
                f"token_ids run from {int(token_ids_T.min())} to {int(token_ids_T.max())}, but hash_table has "
                f"{table_VK.shape[0]} rows: ids must lie in 0..{table_VK.shape[0] - 1}."
            )
        index_TK = table_VK[token_ids_T].to(torch.int64)
        if int(index_TK.min()) < 0 or int(index_TK.max()) >= num_experts:
            raise ValueError(f"hash_table names experts outside 0..{num_experts - 1}.")
        sorted_TK = index_TK.sort(dim=-1).values
        if bool((sorted_TK[:, 1:] == sorted_TK[:, :-1]).any()):
            raise ValueError("hash_table names an expert twice for the same token id: each row needs distinct experts.")
        return index_TK


def hashed_experts(token_ids_T: Tensor, num_experts: int, top_k: int, seed: int) -> Tensor:
    """``[T, K]``: ``top_k`` distinct experts of each id, a fixed and even mix of id and seed.

    Example:
        >>> import torch
        >>> ids = torch.arange(10000)
        >>> counts = torch.bincount(hashed_experts(ids, 4, 1, seed=0).flatten())
        >>> bool((counts > 2300).all())
        True
    """
    experts_E = torch.arange(num_experts, device=token_ids_T.device)
    mixed_TE = _mix(_mix(token_ids_T.to(torch.int64)[:, None] + (seed << 20)) + experts_E)
    # 31 bits keep the key positive in int32.
    return topk_by_key((mixed_TE & 0x7FFFFFFF).to(torch.int32), top_k)


def _mix(value: Tensor) -> Tensor:
    """A bijective mixing of int64 bits (the finalizer of SplitMix64, with arithmetic shifts masked to logical ones)."""
    value = value + -7046029254386353131
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return value ^ ((value >> 31) & 0x1FFFFFFFF)
