"""The backward of a layer's second half on devices that Triton serves: six launches, of which none adds atomically."""

import triton
from torch import Tensor

from moegate.ops.combine.gpu_operator import combine
from moegate.ops.experts.gpu_operator import function_of
from moegate.ops.grouped_mm.gpu_operator import grouped_mm, grouped_outer
from moegate.ops.mixture.gpu_kernel_backward import inner_backward_kernel
from moegate.ops.permute.gpu_operator import permute


def trained_mixture_backward(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_TD: Tensor,
    hidden_TD: Tensor,
    weights_TK: Tensor,
    slot_R: Tensor,
    inverse_TK: Tensor,
    offsets_E: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    activation: int,
    needs_hidden: bool,
    needs_weights: bool,
    needs_projections: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``moegate::trained_mixture_backward``."""
    grad_RD = permute(grad_out_TD, slot_R, inverse_TK, None)
    grad_inner_RF = grouped_mm(grad_RD, down_EDF.mT, offsets_E)
    inner_RF, grad_pre, grad_weights_TK = _inner_backward(pre, grad_inner_RF, weights_TK, inverse_TK, activation)
    grad_hidden_TD, grad_up, grad_down_EDF = (hidden_TD.new_empty(0) for _ in range(3))
    if needs_hidden:
        grad_hidden_TD = combine(grouped_mm(grad_pre, up.mT, offsets_E), slot_R, inverse_TK, None)
    if needs_projections:
        grad_up = grouped_outer(grad_pre, permute(hidden_TD, slot_R, inverse_TK, None), offsets_E)
        grad_down_EDF = grouped_outer(grad_RD, inner_RF, offsets_E)
    return grad_hidden_TD, grad_weights_TK if needs_weights else weights_TK.new_empty(0), grad_up, grad_down_EDF


def _inner_backward(
    pre: Tensor, grad_inner_RF: Tensor, weights_TK: Tensor, inverse_TK: Tensor, activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted inner values, the gradient of ``pre``, and that of the weights."""
    num_rows, width = grad_inner_RF.shape
    inner_RF, grad_pre = grad_inner_RF.new_empty(grad_inner_RF.shape), pre.new_empty(pre.shape)
    grad_weights_TK = weights_TK.new_empty(weights_TK.shape)
    num_slots = inverse_TK.numel()
    if num_slots:
        function, gated = function_of(activation)
        block_f = min(1024, triton.next_power_of_2(max(1, width)))
        block_s = max(1, 1024 // block_f)
        inner_backward_kernel[(triton.cdiv(num_slots, block_s),)](
            pre, grad_inner_RF, weights_TK.contiguous(), inverse_TK, inner_RF, grad_pre, grad_weights_TK,
            num_slots, num_rows, width, FUNCTION=function, GATED=gated, BLOCK_S=block_s, BLOCK_F=block_f,
        )  # fmt: skip
    return inner_RF, grad_pre, grad_weights_TK
