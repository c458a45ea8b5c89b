"""The grouped products on devices that Triton serves: PyTorch's own where they are fast and allowed, else Triton's."""

import torch
import triton
from torch import Tensor

from moegate.ops.grouped_mm.gpu_kernel import grouped_mm_kernel, grouped_outer_kernel
from moegate.ops.grouped_mm.reference import (
    check_grouped_mm,
    check_grouped_outer,
    grouped_mm_reference,
    grouped_outer_reference,
)

_ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)


def grouped_mm(rows_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """``moegate::grouped_mm``."""
    check_grouped_mm(rows_RI, weight_EOI, offsets_E)
    if rows_RI.dtype not in _ELEMENTS:
        return grouped_mm_reference(rows_RI, weight_EOI, offsets_E)
    num_rows, num_inputs = rows_RI.shape
    num_groups, num_outputs, _ = weight_EOI.shape
    out_RO = rows_RI.new_empty(num_rows, num_outputs)
    if out_RO.numel() == 0:
        return out_RO
    if num_groups == 0:
        return out_RO.zero_()
    block_r = 16 if num_rows <= 16 * num_groups else 64
    block_o, block_i = 64, 32
    grid = (triton.cdiv(num_rows, block_r) + num_groups, triton.cdiv(num_outputs, block_o))
    grouped_mm_kernel[grid](
        rows_RI, weight_EOI, offsets_E, out_RO, num_groups, num_rows, num_inputs, num_outputs,
        *rows_RI.stride(), *weight_EOI.stride(),
        BLOCK_R=block_r, BLOCK_O=block_o, BLOCK_I=block_i, BLOCK_E=triton.next_power_of_2(num_groups + 1),
    )  # fmt: skip
    return out_RO


def grouped_outer(left_RO: Tensor, right_RI: Tensor, offsets_E: Tensor) -> Tensor:
    """``moegate::grouped_outer``."""
    check_grouped_outer(left_RO, right_RI, offsets_E)
    if left_RO.dtype not in _ELEMENTS:
        return grouped_outer_reference(left_RO, right_RI, offsets_E)
    num_outputs, num_inputs, num_groups = left_RO.shape[1], right_RI.shape[1], offsets_E.shape[0]
    out_EOI = left_RO.new_empty(num_groups, num_outputs, num_inputs)
    if out_EOI.numel():
        block_o, block_i, block_r = 64, 64, 32
        grid = (num_groups, triton.cdiv(num_outputs, block_o) * triton.cdiv(num_inputs, block_i))
        grouped_outer_kernel[grid](
            left_RO, right_RI, offsets_E, out_EOI, num_outputs, num_inputs, *left_RO.stride(), *right_RI.stride(),
            ADD=False, BLOCK_O=block_o, BLOCK_I=block_i, BLOCK_R=block_r,
        )  # fmt: skip
    return out_EOI
