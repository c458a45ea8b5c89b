"""npu_moe_token_unpermute_with_routing_map: the way back of the permutation from a map."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import (
    FLOATS,
    check_float,
    check_index,
    check_tensor,
    check_values,
    require,
    require_types,
)
from moegate.ascend.routing_map import check_routing_map, chosen_experts
from moegate.ascend.rows import sum_rows
from moegate.ascend.token_unpermute import add_rows

_NAME = "npu_moe_token_unpermute_with_routing_map"


def npu_moe_token_unpermute_with_routing_map(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    *,
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    drop_and_pad: bool = False,
    strict: bool = False,
) -> Tensor:
    """The sum of each token's rows, weighted by its probabilities; differentiable in rows and probs.

    Summed in float32 (float64 in float64) and rounded once: the same bits in every run, where the device's order of
    sums is not defined unless asked for.

    Args:
        permuted_tokens: ``[R, H]``.
        sorted_indices: int32, as ``npu_moe_token_permute_with_routing_map`` gives it: ``[N · K]`` the row of each slot,
            -1 for a slot that is not used; with ``drop_and_pad`` ``[E · C]``, the token of each row.
        restore_shape: ``[N, H]``.
        probs: ``[N, E]``, with ``routing_map``; None for 1.
        routing_map: ``[N, E]`` bool or int8; only read with ``probs``, and not with ``drop_and_pad``.
        drop_and_pad: whether rows were filled up to a capacity.
        strict: raises for what the hardware does not take.

    Returns:
        ``[N, H]`` in the type of the rows.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for a type or a size that the hardware does not take.

    Example:
        >>> rows, sorted_indices = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 2, 1, -1], dtype=torch.int32)
        >>> routing_map = torch.tensor([[True, True], [True, False]])
        >>> probs = torch.tensor([[0.5, 2.0], [1.0, 0.0]])
        >>> npu_moe_token_unpermute_with_routing_map(
        ...     rows, sorted_indices, [2, 1], probs=probs, routing_map=routing_map).flatten().tolist()
        [6.5, 2.0]

    Source: torch_npu (op-plugin) npu_moe_token_unpermute_with_routing_map; CANN aclnnMoeTokenUnpermuteWithRoutingMap.
    """
    check_tensor("permuted_tokens", permuted_tokens, "rows", "hidden size")
    check_float("permuted_tokens", permuted_tokens)
    check_index("sorted_indices", sorted_indices, "slots")
    if len(restore_shape) != 2 or restore_shape[0] < 0 or restore_shape[1] != permuted_tokens.shape[1]:
        raise AscendOperatorError(
            INVALID, f"restore_shape must be [tokens, {permuted_tokens.shape[1]}], got {list(restore_shape)}."
        )
    num_tokens = restore_shape[0]
    if probs is not None:
        check_tensor("probs", probs, num_tokens, "experts")
        check_float("probs", probs)
    if strict:
        _check_limits(permuted_tokens, sorted_indices, num_tokens, probs, drop_and_pad)
    if drop_and_pad:
        return add_rows(permuted_tokens, sorted_indices, _padded_probs(probs, sorted_indices), num_tokens)
    if num_tokens == 0:
        return permuted_tokens.new_zeros(0, permuted_tokens.shape[1])
    top_k, over = divmod(sorted_indices.numel(), num_tokens)
    if over:
        raise AscendOperatorError(
            INVALID, f"sorted_indices has {sorted_indices.numel()} slots, no multiple of {num_tokens} tokens."
        )
    weights_NK = None if probs is None else _slot_probs(probs, routing_map, top_k)
    return sum_rows(permuted_tokens, sorted_indices.view(num_tokens, top_k), weights_NK)


def _slot_probs(probs: Tensor, routing_map: Tensor | None, top_k: int) -> Tensor:
    """``[N, K]``: the probability of each slot, whose experts are in ascending order."""
    if routing_map is None:
        raise AscendOperatorError(INVALID, "probs are read where routing_map says: pass routing_map too.")
    check_routing_map(routing_map, probs.shape[0])
    check_tensor("probs", probs, *routing_map.shape)
    expert_NK = chosen_experts(routing_map, top_k)
    found_NK = probs.gather(1, expert_NK.clamp(min=0))
    missing = top_k - expert_NK.shape[1]
    return torch.cat([found_NK, found_NK.new_zeros(probs.shape[0], missing)], dim=1)


def _padded_probs(probs: Tensor | None, token_R: Tensor) -> Tensor | None:
    """``[E · C]``: the probability that row ``r`` has with expert ``r // C``."""
    if probs is None:
        return None
    num_experts = probs.shape[1]
    if num_experts == 0 or token_R.shape[0] % num_experts:
        raise AscendOperatorError(
            INVALID, f"sorted_indices has {token_R.shape[0]} rows, no multiple of {num_experts} experts."
        )
    if token_R.shape[0] == 0:
        return probs.new_zeros(0)
    check_values("sorted_indices", token_R, 0, probs.shape[0] - 1, "tokens")
    capacity = token_R.shape[0] // num_experts
    expert_R = torch.arange(num_experts, device=probs.device).repeat_interleave(capacity)
    return probs[token_R.to(torch.int64), expert_R]


def _check_limits(
    rows: Tensor, sorted_indices: Tensor, num_tokens: int, probs: Tensor | None, drop_and_pad: bool
) -> None:
    require_types(_NAME, FLOATS, permuted_tokens=rows, probs=probs)
    require_types(_NAME, (torch.int32,), sorted_indices=sorted_indices)
    if probs is not None:
        alike = probs.dtype == rows.dtype or (probs.dtype, rows.dtype) == (torch.float32, torch.bfloat16)
        require(alike, _NAME, "probs in the type of the rows, or float32 with bfloat16 rows", probs.dtype)
    top_k = rows.shape[0] // max(1, num_tokens)
    require(top_k <= 512, _NAME, "at most 512 experts per token", top_k)
    if drop_and_pad and probs is not None:
        num_experts = max(1, probs.shape[1])
        capacity = sorted_indices.shape[0] // num_experts
        require(top_k <= num_experts, _NAME, "no more slots per token than experts", top_k)
        require(capacity <= num_tokens, _NAME, "a capacity up to the number of tokens", capacity)
