"""npu_moe_token_unpermute: Megatron's way back, the sum of each token's rows."""

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
from moegate.ascend.rows import sum_rows, wide

_NAME = "npu_moe_token_unpermute"


def npu_moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
    *,
    strict: bool = False,
) -> Tensor:
    """``out[i] = Σ_j permuted_tokens[sorted_indices[i · K + j]] · probs[i, j]``; differentiable in rows and probs.

    Summed in float32 (float64 in float64) in the order of ``j``, rounded once.

    Args:
        permuted_tokens: ``[R, H]``.
        sorted_indices: ``[N · K]`` int32, the row of each slot; in padded mode ``[R]``, the token of each row.
        probs: ``[N, K]``; None for ``K = 1`` and no factor. In padded mode: one for each row, of any shape.
        padded_mode: adds row ``r`` to token ``sorted_indices[r]``. No device takes it; Megatron does.
        restore_shape: ``[N, H]``, in padded mode.
        strict: raises for what the hardware does not take.

    Returns:
        ``[N, H]`` in the type of the rows. A slot whose row is negative (undefined on the device) or lies beyond the
        rows, cut off by ``num_out_tokens``, adds nothing.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for a type or a value that the hardware does not take.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [4.0], [1.0], [2.0], [3.0], [4.0]])
        >>> sorted_indices = torch.tensor([0, 4, 5, 1, 2, 6, 7, 3], dtype=torch.int32)
        >>> npu_moe_token_unpermute(rows, sorted_indices, torch.full((4, 2), 0.5)).flatten().tolist()
        [1.0, 2.0, 3.0, 4.0]

    Source: torch_npu (op-plugin) npu_moe_token_unpermute; CANN aclnnMoeTokenUnpermute.
    """
    check_tensor("permuted_tokens", permuted_tokens, "rows", "hidden size")
    check_float("permuted_tokens", permuted_tokens)
    check_index("sorted_indices", sorted_indices, "slots")
    if probs is not None:
        check_float("probs", probs)
    if strict:
        _check_limits(permuted_tokens, sorted_indices, probs, padded_mode)
    if padded_mode:
        return _padded(permuted_tokens, sorted_indices, probs, restore_shape)
    if restore_shape is not None:
        raise AscendOperatorError(INVALID, "restore_shape belongs to padded_mode=True: leave it None.")
    if probs is None:
        return sum_rows(permuted_tokens, sorted_indices[:, None])
    check_tensor("probs", probs, "tokens", "experts per token")
    if probs.numel() != sorted_indices.numel():
        raise AscendOperatorError(
            INVALID, f"probs {tuple(probs.shape)} must have one value per slot, {sorted_indices.numel()} in all."
        )
    return sum_rows(permuted_tokens, sorted_indices.view(probs.shape), probs)


def _padded(rows_RH: Tensor, token_R: Tensor, probs: Tensor | None, restore_shape: Sequence[int] | None) -> Tensor:
    if restore_shape is None:
        raise AscendOperatorError(INVALID, "padded_mode=True needs restore_shape, the shape of the tokens.")
    if len(restore_shape) != 2 or restore_shape[1] != rows_RH.shape[1]:
        raise AscendOperatorError(
            INVALID, f"restore_shape must be [tokens, {rows_RH.shape[1]}], got {list(restore_shape)}."
        )
    return add_rows(rows_RH, token_R, None if probs is None else probs.reshape(-1), restore_shape[0])


def add_rows(rows_RH: Tensor, token_R: Tensor, weights_R: Tensor | None, num_tokens: int) -> Tensor:
    """``out[token[r]] += weights[r] · rows[r]``, in the order of the rows, in float32 (float64 in float64).

    Example:
        >>> add_rows(torch.ones(3, 1), torch.tensor([1, 1, 0]), torch.tensor([0.5, 0.25, 1.0]), 2).flatten().tolist()
        [1.0, 0.75]
    """
    check_tensor("The token of each row", token_R, rows_RH.shape[0])
    check_values("The token of each row", token_R, 0, num_tokens - 1, "tokens")
    wide_RH = rows_RH.to(wide(rows_RH.dtype))
    if weights_R is not None:
        check_tensor("probs, one per row,", weights_R, rows_RH.shape[0])
        wide_RH = wide_RH * weights_R.to(wide_RH.dtype)[:, None]
    out_NH = torch.zeros(num_tokens, rows_RH.shape[1], dtype=wide_RH.dtype, device=rows_RH.device)
    return out_NH.index_add(0, token_R, wide_RH).to(rows_RH.dtype)


def _check_limits(rows: Tensor, sorted_indices: Tensor, probs: Tensor | None, padded_mode: bool) -> None:
    require(not padded_mode, _NAME, "padded_mode=False", padded_mode)
    require_types(_NAME, FLOATS, permuted_tokens=rows, probs=probs)
    require_types(_NAME, (torch.int32,), sorted_indices=sorted_indices)
    top_k = 1 if probs is None else probs.shape[-1]
    require(top_k <= 512, _NAME, "at most 512 experts per token", top_k)
    if sorted_indices.numel():
        least = int(sorted_indices.min())
        require(least >= 0, _NAME, "a row for every slot", least)
