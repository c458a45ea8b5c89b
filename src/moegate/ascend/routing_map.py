"""Routing as a map, ``[N, E]``: which experts each token goes to."""

import torch
from torch import Tensor

from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import check_tensor, readable
from moegate.records import EMPTY


def check_routing_map(routing_map: object, num_tokens: int) -> None:
    """Raises unless this is a map of bool or int8 with a row per token."""
    check_tensor("routing_map", routing_map, num_tokens, "experts")
    if isinstance(routing_map, Tensor) and routing_map.dtype not in (torch.bool, torch.int8):
        raise TypeError(f"routing_map must be bool or int8 of 0 and 1, got {routing_map.dtype}.")


def chosen_experts(routing_map_NE: Tensor, top_k: int) -> Tensor:
    """``[N, K]`` int64: each token's experts in ascending order, -1 behind the last.

    Raises:
        ValueError: when a token has more than ``top_k``.

    Example:
        >>> chosen_experts(torch.tensor([[True, False, True], [False, True, False]]), 2).tolist()
        [[0, 2], [1, -1]]
    """
    chosen_NE = routing_map_NE.bool()
    count_N = chosen_NE.sum(dim=1)
    if readable(count_N) and count_N.numel() and int(count_N.max()) > top_k:
        raise AscendOperatorError(
            INVALID,
            f"A token of routing_map has {int(count_N.max())} experts, and there is room for {top_k} per token: "
            "num_out_tokens must be the number of tokens times the most experts that one has.",
        )
    first_NK = torch.argsort((~chosen_NE).to(torch.int8), dim=1, stable=True)[:, :top_k]
    there_NK = torch.arange(first_NK.shape[1], device=count_N.device) < count_N[:, None]
    return torch.where(there_NK, first_NK, EMPTY)
