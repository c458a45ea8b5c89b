"""An all-to-all of rows on torch.distributed that gradients go back through."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class _Exchange(torch.autograd.Function):
    """Rows to the ranks of the group; the gradient takes the same way back."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup | None
    ) -> Tensor:
        ctx.way = sent, received, group
        return _sent(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received, group = ctx.way
        return _sent(grads[0], received, sent, group), None, None, None


def exchange(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup | None) -> Tensor:
    """The rows that the ranks of a group have for this one, by rank; every rank of the group must call it.

    Args:
        rows: ``[sum(sent), ...]``, by the rank they go to.
        sent: rows for each rank.
        received: rows from each rank.
        group: None for a group of one, which communicates nothing.

    Example:
        >>> exchange(torch.tensor([1.0, 2.0]), [2], [2], None).tolist()
        [1.0, 2.0]
    """
    if group is None:
        return rows
    return _Exchange.apply(rows, sent, received, group)  # type: ignore[no-any-return, no-untyped-call]


def _sent(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup | None) -> Tensor:
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), list(received), list(sent), group=group)
    return arrived


def process_group(group_ep: str | ProcessGroup, world_size: int, rank: int) -> ProcessGroup | None:
    """The group of that name, or the group itself; None for a world of one.

    Raises:
        ValueError: when there is no such group, or it has another size or rank.

    Example:
        >>> process_group("anything", world_size=1, rank=0) is None
        True
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"ep_rank_id must be from 0 to ep_world_size - 1 = {world_size - 1}, got {rank}.")
    if world_size == 1:
        return None
    if not dist.is_initialized():
        raise ValueError("More than one rank needs torch.distributed.init_process_group first.")
    group = _named(group_ep) if isinstance(group_ep, str) else group_ep
    found = dist.get_world_size(group), dist.get_rank(group)
    if found != (world_size, rank):
        raise ValueError(
            f"group_ep has {found[0]} ranks and this is rank {found[1]} of it, "
            f"but ep_world_size={world_size} and ep_rank_id={rank}."
        )
    return group


def _named(name: str) -> ProcessGroup:
    try:
        return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(
            f"torch.distributed has no process group called {name!r}: pass group.group_name, or the group itself."
        ) from error
