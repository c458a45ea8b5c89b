"""npu_moe_init_routing: one row per token and expert, sorted by expert, in the column layout of the first gating."""

import torch
from torch import Tensor

from moegate.ascend.limits_rows import (
    FLOATS,
    check_index,
    check_tensor,
    check_values,
    require,
    require_types,
)
from moegate.ascend.rows import inverse_places, take_rows
from moegate.parts import check_integer

_NAME = "npu_moe_init_routing"


def npu_moe_init_routing(
    x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int, *, strict: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens' rows sorted by expert, for the output of ``npu_moe_gating_top_k_softmax``; differentiable in ``x``.

    ``row_idx`` numbers the slots: that of the gating is ``j · N + i`` for slot ``j`` of token ``i``, so
    ``expanded_row_idx`` is laid out by column, as ``npu_moe_finalize_routing`` reads it in the modes 0 and 1.

    Args:
        x: ``[N, H]``.
        row_idx: ``[N, K]`` int32, the number of each slot; its token is this modulo N.
        expert_idx: ``[N, K]`` int32.
        active_num: how many *tokens* worth of rows to give: ``min(active_num, N) · K``.
        strict: raises for what the hardware does not take.

    Returns:
        ``expanded_x [min(active_num, N) · K, H]``; ``expanded_row_idx [N · K]`` int32, the row of each slot number,
        -1 for a number that ``row_idx`` lacks (undefined on the device); ``expanded_expert_idx [N · K]`` int32, sorted.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for a type or a size that the hardware does not take.

    Example:
        >>> x = torch.tensor([[0.1], [0.2], [0.3]])
        >>> row_idx = torch.tensor([[0, 3], [1, 4], [2, 5]], dtype=torch.int32)
        >>> expert_idx = torch.tensor([[1, 2], [0, 1], [0, 2]], dtype=torch.int32)
        >>> rows, places, experts = npu_moe_init_routing(x, row_idx, expert_idx, 3)
        >>> rows.flatten().tolist() == x[[1, 2, 0, 1, 0, 2]].flatten().tolist(), places.tolist(), experts.tolist()
        (True, [2, 0, 1, 4, 3, 5], [0, 0, 1, 1, 2, 2])

    Source: torch_npu (op-plugin) npu_moe_init_routing; CANN aclnnMoeInitRouting.
    """
    check_tensor("x", x, "tokens", "hidden size")
    num_tokens = x.shape[0]
    check_index("expert_idx", expert_idx, num_tokens, "experts per token")
    top_k = expert_idx.shape[1]
    check_index("row_idx", row_idx, num_tokens, top_k)
    check_integer("active_num", active_num, least=0)
    check_values("row_idx", row_idx, 0, max(0, num_tokens * top_k - 1), "the numbers of the slots")
    if strict:
        _check_limits(x, row_idx, expert_idx)
    sorted_expert_N, order_N = torch.sort(expert_idx.reshape(-1), stable=True)
    number_N = row_idx.reshape(-1)[order_N].to(torch.int64)
    expanded_row_idx, _ = inverse_places(number_N, num_tokens * top_k)
    active_R = number_N[: min(active_num, num_tokens) * top_k]
    # Slot j of token i, which the row operators count by token.
    slot_R = (active_R % num_tokens) * top_k + active_R // num_tokens if num_tokens else active_R
    return take_rows(x, slot_R, top_k), expanded_row_idx.to(torch.int32), sorted_expert_N.to(torch.int32)


def _check_limits(x: Tensor, row_idx: Tensor, expert_idx: Tensor) -> None:
    require_types(_NAME, FLOATS, x=x)
    require_types(_NAME, (torch.int32,), row_idx=row_idx, expert_idx=expert_idx)
    most = 1 << 24
    require(x.shape[0] < most and x.shape[1] < most, _NAME, "x with sizes below 2^24", tuple(x.shape))
    if expert_idx.numel():
        largest = int(expert_idx.abs().max())
        require(largest <= most, _NAME, "expert ids up to 2^24, since it sorts them as float32", largest)
