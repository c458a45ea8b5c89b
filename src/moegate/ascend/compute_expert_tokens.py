"""npu_moe_compute_expert_tokens: where each expert's rows end."""

import torch
from torch import Tensor

from moegate.ascend.limits_rows import check_index, require, require_types
from moegate.parts import check_integer

_NAME = "npu_moe_compute_expert_tokens"


def npu_moe_compute_expert_tokens(
    sorted_expert_for_source_row: Tensor, num_expert: int, *, strict: bool = False
) -> Tensor:
    """The end of each expert's rows: an inclusive *cumulative* count, in spite of the name.

    It is what ``moegate.Experts`` takes as offsets.

    Args:
        sorted_expert_for_source_row: ``[R]`` int32, the expert of each row, ascending.
        num_expert: ``E``.
        strict: raises for what the hardware does not take.

    Returns:
        ``[E]`` int32: the number of rows with an expert up to and including this one.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for a type or a size that the hardware does not take.

    Example:
        >>> sorted_experts = torch.tensor([3, 3, 4, 5, 6, 7], dtype=torch.int32)
        >>> npu_moe_compute_expert_tokens(sorted_experts, 5).tolist()
        [0, 0, 0, 2, 3]

    Source: torch_npu (op-plugin) npu_moe_compute_expert_tokens; CANN aclnnMoeComputeExpertTokens.
    """
    check_index("sorted_expert_for_source_row", sorted_expert_for_source_row, "rows")
    check_integer("num_expert", num_expert, least=0)
    if strict:
        _check_limits(sorted_expert_for_source_row, num_expert)
    expert_E = torch.arange(
        num_expert, dtype=sorted_expert_for_source_row.dtype, device=sorted_expert_for_source_row.device
    )
    return torch.searchsorted(sorted_expert_for_source_row.contiguous(), expert_E, right=True, out_int32=True)


def _check_limits(sorted_expert_R: Tensor, num_expert: int) -> None:
    require_types(_NAME, (torch.int32,), sorted_expert_for_source_row=sorted_expert_R)
    require(0 < num_expert <= 2048, _NAME, "1 to 2048 experts", num_expert)
    num_rows = sorted_expert_R.shape[0]
    require(num_rows < 1 << 24, _NAME, "fewer than 2^24 rows", num_rows)
    ascending = bool((sorted_expert_R.diff() >= 0).all())
    require(ascending, _NAME, "experts in ascending order", "an order that is not")
