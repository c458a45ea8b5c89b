"""Rows from tokens on devices that Triton serves: sizes, allocation, launch."""

import triton
from torch import Tensor

from moegate.ops.permute.gpu_kernel import permute_kernel
from moegate.ops.permute.shapes import check_matrix, check_places, check_weights


def permute(hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """``moegate::permute``."""
    check_places(slot_R, inverse_TK)
    check_matrix("hidden", hidden_TD, inverse_TK)
    check_weights(weights_TK, inverse_TK, hidden_TD.dtype)
    num_rows, width = slot_R.shape[0], hidden_TD.shape[1]
    rows_RD = hidden_TD.new_empty(num_rows, width)
    if rows_RD.numel():
        block_d = min(1024, triton.next_power_of_2(width))
        block_r = max(1, 1024 // block_d)
        permute_kernel[triton.cdiv(num_rows, block_r), triton.cdiv(width, block_d)](
            hidden_TD, slot_R.contiguous(), None if weights_TK is None else weights_TK.contiguous(), rows_RD,
            num_rows, width, *hidden_TD.stride(),
            K=max(1, inverse_TK.shape[1]), HAS_WEIGHTS=weights_TK is not None, BLOCK_R=block_r, BLOCK_D=block_d,
            enable_fp_fusion=False,
        )  # fmt: skip
    return rows_RD
