"""npu_moe_token_permute: Megatron's permutation, one row per token and expert."""

import torch
from torch import Tensor

from moegate.ascend.limits_rows import (
    FLOATS,
    check_index,
    check_integers,
    check_tensor,
    check_values,
    require,
    require_types,
)
from moegate.ascend.rows import inverse_places, take_rows
from moegate.ops.permute import permute
from moegate.parts import check_integer

_NAME = "npu_moe_token_permute"


def npu_moe_token_permute(
    tokens: Tensor,
    indices: Tensor,
    num_out_tokens: int | None = None,
    padded_mode: bool = False,
    *,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    """The tokens' rows sorted by expert, and where each slot's row went; differentiable in ``tokens``.

    Args:
        tokens: ``[N, H]``.
        indices: ``[N, K]`` or ``[N]`` int32 or int64: the experts of each token. In padded mode: any shape, the token
            of each row.
        num_out_tokens: only the first so many rows; None and 0 for all, negative as in a slice.
        padded_mode: the rows are ``tokens[indices]``, unsorted. No device takes it; Megatron does.
        strict: raises for what the hardware does not take.

    Returns:
        The rows ``[R, H]``, and ``sorted_indices [N · K]`` int32: the row of each slot ``i · K + j``, which may lie
        beyond ``num_out_tokens``. In padded mode: the indices, flat.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for a type or a value that the hardware does not take.

    Example:
        >>> tokens = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> indices = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 0]], dtype=torch.int32)
        >>> rows, sorted_indices = npu_moe_token_permute(tokens, indices)
        >>> rows.flatten().tolist(), sorted_indices.tolist()
        ([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0], [0, 4, 5, 1, 2, 6, 7, 3])

    Source: torch_npu (op-plugin) npu_moe_token_permute; CANN aclnnMoeTokenPermute.
    """
    check_tensor("tokens", tokens, "tokens", "hidden size")
    check_integers("indices", indices)
    if num_out_tokens is not None:
        check_integer("num_out_tokens", num_out_tokens)
    if strict:
        _check_limits(tokens, indices, padded_mode)
    if padded_mode:
        return _padded(tokens, indices)
    num_tokens = tokens.shape[0]
    check_index("indices", indices, num_tokens, *(["experts per token"] if indices.ndim == 2 else []))
    top_k = indices.shape[1] if indices.ndim == 2 else 1
    slot_N = torch.argsort(indices.reshape(-1), stable=True)
    inverse_N, _ = inverse_places(slot_N, num_tokens * top_k)
    slot_R = slot_N[: num_out_tokens or None]
    inverse_NK = torch.where(inverse_N < slot_R.shape[0], inverse_N, -1).view(num_tokens, top_k)
    return permute(tokens, slot_R, inverse_NK), inverse_N.to(torch.int32)


def _padded(tokens: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    check_values("indices", indices, 0, tokens.shape[0] - 1, "tokens, in padded mode")
    token_R = indices.reshape(-1)
    return take_rows(tokens, token_R.to(torch.int64), top_k=1), token_R.to(torch.int32)


def _check_limits(tokens: Tensor, indices: Tensor, padded_mode: bool) -> None:
    require(not padded_mode, _NAME, "padded_mode=False", padded_mode)
    require_types(_NAME, FLOATS, tokens=tokens)
    most = 16_777_215
    require(indices.numel() < most, _NAME, f"fewer than {most} indices", indices.numel())
    if indices.numel():
        least, greatest = int(indices.min()), int(indices.max())
        require(least >= 0 and greatest < most, _NAME, f"indices from 0 to {most - 1}", (least, greatest))
