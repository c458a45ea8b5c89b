"""npu_moe_re_routing: rows that came sorted by rank and expert, sorted by expert and rank."""

import torch
from torch import Tensor

from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import (
    check_float,
    check_index,
    check_mode,
    check_tensor,
    check_values,
    readable,
    require,
    require_types,
)
from moegate.ops.dispatch_plan import Places, dispatch_plan
from moegate.ops.permute import permute

_NAME = "npu_moe_re_routing"
_CUMULATIVE, _GATHER = 0, 0


def npu_moe_re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = 1,
    idx_type: int = 0,
    strict: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of an all-to-all, which lie by rank and then by expert, laid by expert and then by rank.

    Block ``(rank, expert)`` keeps its order. Differentiable in ``tokens`` and ``per_token_scales``.

    Args:
        tokens: ``[A, H]``.
        expert_token_num_per_rank: ``[ranks, E]`` int32 or int64, the rows that came from each rank for each expert.
        per_token_scales: ``[A]`` float32, carried along.
        expert_token_num_type: 1 the rows of each expert; 0 the end of each expert's rows, which no device takes.
        idx_type: 0 gather: ``permute_tokens[p] = tokens[idx[p]]``; 1 scatter: ``permute_tokens[idx[p]] = tokens[p]``,
            on the Ascend 950 only.
        strict: raises for what the hardware does not take.

    Returns:
        ``permute_tokens [A, H]``; ``permute_per_token_scales [A]`` float32, 0 without scales (undefined on the device);
        ``permute_token_idx [A]`` int32; ``expert_token_num [E]`` in the type of the counts.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit; the counts must add up to ``A``.
        AscendOperatorError: in strict mode, for a type or a value that the hardware does not take.

    Example:
        >>> tokens = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> counts = torch.tensor([[1, 1], [0, 2]], dtype=torch.int32)
        >>> rows, _, index, per_expert = npu_moe_re_routing(tokens, counts)
        >>> rows.flatten().tolist(), index.tolist(), per_expert.tolist()
        ([0.0, 1.0, 2.0, 3.0], [0, 1, 2, 3], [1, 3])
        >>> npu_moe_re_routing(tokens, torch.tensor([[1, 1], [2, 0]]))[2].tolist()
        [0, 2, 3, 1]

    Source: torch_npu (op-plugin) npu_moe_re_routing; CANN aclnnMoeReRouting.
    """
    check_tensor("tokens", tokens, "rows", "hidden size")
    check_index("expert_token_num_per_rank", expert_token_num_per_rank, "ranks", "experts")
    check_mode("expert_token_num_type", expert_token_num_type, (0, 1))
    check_mode("idx_type", idx_type, (0, 1))
    if per_token_scales is not None:
        check_tensor("per_token_scales", per_token_scales, tokens.shape[0])
        check_float("per_token_scales", per_token_scales)
    if strict:
        _check_limits(tokens, expert_token_num_per_rank, per_token_scales, expert_token_num_type, idx_type)
    places = expert_major(expert_token_num_per_rank, tokens.shape[0])
    rows_AH = permute(tokens, places.slot, places.inverse)
    scales_A = torch.zeros(tokens.shape[0], dtype=torch.float32, device=tokens.device)
    if per_token_scales is not None:
        scales_A = permute(per_token_scales[:, None], places.slot, places.inverse)[:, 0]
    index_A = places.slot if idx_type == _GATHER else places.inverse[:, 0]
    counts_E = expert_token_num_per_rank.sum(0, dtype=expert_token_num_per_rank.dtype)
    if expert_token_num_type == _CUMULATIVE:
        counts_E = counts_E.cumsum(0, dtype=counts_E.dtype)
    return rows_AH, scales_A, index_A.to(torch.int32), counts_E


def expert_major(counts_NE: Tensor, num_rows: int) -> Places:
    """Where rows that lie by rank and expert go when they are laid by expert and rank.

    Example:
        >>> expert_major(torch.tensor([[1, 1], [2, 0]]), 4).slot.tolist()
        [0, 2, 3, 1]
    """
    check_values("expert_token_num_per_rank", counts_NE, 0, num_rows, "numbers of rows")
    if readable(counts_NE) and int(counts_NE.sum()) != num_rows:
        raise AscendOperatorError(
            INVALID, f"expert_token_num_per_rank counts {int(counts_NE.sum())} rows, but there are {num_rows}."
        )
    num_ranks, num_experts = counts_NE.shape
    expert_B = torch.arange(num_experts, device=counts_NE.device).repeat(num_ranks)
    expert_A = expert_B.repeat_interleave(counts_NE.reshape(-1).to(torch.int64), output_size=num_rows)
    return dispatch_plan(expert_A[:, None], max(1, num_experts))


def _check_limits(
    tokens: Tensor, counts_NE: Tensor, per_token_scales: Tensor | None, expert_token_num_type: int, idx_type: int
) -> None:
    require_types(_NAME, (torch.float16, torch.bfloat16, torch.int8), tokens=tokens)
    require_types(_NAME, (torch.float32,), per_token_scales=per_token_scales)
    require(0 < tokens.shape[1] < 16384, _NAME, "a hidden size from 1 to 16383", tokens.shape[1])
    require(expert_token_num_type == 1, _NAME, "expert_token_num_type=1", expert_token_num_type)
    require(idx_type == 0, _NAME, "idx_type=0 (before the Ascend 950)", idx_type)
    if counts_NE.numel():
        least = int(counts_NE.min())
        require(least > 0, _NAME, "a row from every rank for every expert", least)
