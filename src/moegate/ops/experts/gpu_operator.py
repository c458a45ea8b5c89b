"""The experts on devices that Triton serves: grouped products around one kernel for the activation."""

import torch
import triton
from torch import Tensor

from moegate.ops.experts.activations import ACTIVATIONS, GATED
from moegate.ops.experts.forward import check_sizes
from moegate.ops.experts.gpu_kernel import activation_backward_kernel, activation_kernel
from moegate.ops.grouped_mm.gpu_operator import grouped_mm, grouped_outer

_FUNCTIONS = {"swiglu": "silu", "geglu": "gelu"}


def experts(
    rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """``moegate::experts``."""
    check_sizes(rows_RD, up, down_EDF, offsets_E, activation)
    pre = grouped_mm(rows_RD, up, offsets_E)
    inner_RF = rows_RD.new_empty(rows_RD.shape[0], down_EDF.shape[2])
    _launch(activation_kernel, (pre, inner_RF), inner_RF, activation)
    return grouped_mm(inner_RF, down_EDF, offsets_E), pre if keep else pre.new_empty(0, up.shape[1])


def experts_backward(
    grad_out_RD, rows_RD, pre, up, down_EDF, offsets_E, activation, needs_rows, needs_weights
) -> tuple[Tensor, Tensor, Tensor]:
    """``moegate::experts_backward``."""
    grad_inner_RF = grouped_mm(grad_out_RD, down_EDF.mT, offsets_E)
    inner_RF, grad_pre = torch.empty_like(grad_inner_RF), torch.empty_like(pre)
    _launch(activation_backward_kernel, (pre, grad_inner_RF, inner_RF, grad_pre), inner_RF, activation)
    none = rows_RD.new_empty(0)
    return (
        grouped_mm(grad_pre, up.mT, offsets_E) if needs_rows else none,
        grouped_outer(grad_pre, rows_RD, offsets_E) if needs_weights else none.clone(),
        grouped_outer(grad_out_RD, inner_RF, offsets_E) if needs_weights else none.clone(),
    )


def _launch(kernel, tensors: tuple[Tensor, ...], inner_RF: Tensor, activation: int) -> None:
    num_rows, width = inner_RF.shape
    if inner_RF.numel() == 0:
        return
    name = ACTIVATIONS[activation]
    block_f = min(1024, triton.next_power_of_2(width))
    block_r = max(1, 1024 // block_f)
    grid = (triton.cdiv(num_rows, block_r), triton.cdiv(width, block_f))
    kernel[grid](
        *tensors, num_rows, width,
        FUNCTION=_FUNCTIONS.get(name, name), GATED=name in GATED, BLOCK_R=block_r, BLOCK_F=block_f,
    )  # fmt: skip
