"""Sum counts over the ranks of a process group."""

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(counts: Tensor, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of ``counts`` over a process group, with one ``all_reduce``; the argument is left as it is.

    ``process_group=None`` means the default group, as everywhere in ``torch.distributed``; where no process
    group was ever initialised there is one rank, and its counts are the sum.

    Example:
        >>> import torch
        >>> sum_over_ranks(torch.tensor([3, 1])).tolist()
        [3, 1]
    """
    if not dist.is_available() or not dist.is_initialized():
        return counts
    total = counts.detach().clone()
    dist.all_reduce(total, group=process_group)
    return total
