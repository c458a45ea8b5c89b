"""The backward of a layer's second half on devices that Triton serves: seven launches, of which none adds atomically."""

import triton
from torch import Tensor

from moegate.ops.combine.gpu_operator import combine
from moegate.ops.experts.gpu_operator import function_of
from moegate.ops.grouped_mm.gpu_operator import ELEMENTS, Slots, outer, product, tiles_of
from moegate.ops.mixture.gpu_kernel_backward import inner_backward_kernel
from moegate.ops.mixture.training_reference import trained_mixture_backward_reference


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
    if pre.dtype not in ELEMENTS:
        return trained_mixture_backward_reference(
            grad_out_TD, hidden_TD, weights_TK, slot_R, inverse_TK, offsets_E, pre, up, down_EDF,
            activation, needs_hidden, needs_weights, needs_projections,
        )  # fmt: skip
    num_rows, (_, hidden_size, width) = slot_R.shape[0], down_EDF.shape
    slots = Slots(slot_R, num_rows, max(1, inverse_TK.shape[1]))
    tiles = tiles_of(offsets_E, num_rows, pre.dtype)
    inner_RF = pre.new_empty(num_rows, width)
    product(grad_out_TD, down_EDF.mT, tiles, inner_RF, gathered=slots)
    grad_pre, grad_weights_TK = _inner_backward(pre, inner_RF, weights_TK, inverse_TK, activation)
    grad_hidden_TD, grad_up, grad_down_EDF = (hidden_TD.new_empty(0) for _ in range(3))
    if needs_hidden:
        rows_RD = pre.new_empty(num_rows, hidden_size)
        product(grad_pre, up.mT, tiles, rows_RD)
        grad_hidden_TD = combine(rows_RD, slot_R, inverse_TK, None)
    if needs_projections:
        grad_up, grad_down_EDF = up.new_empty(up.shape), down_EDF.new_empty(down_EDF.shape)
        outer(grad_pre, hidden_TD, offsets_E, grad_up, gathered_right=slots)
        outer(grad_out_TD, inner_RF, offsets_E, grad_down_EDF, gathered_left=slots)
    return grad_hidden_TD, grad_weights_TK if needs_weights else weights_TK.new_empty(0), grad_up, grad_down_EDF


def _inner_backward(
    pre: Tensor, grad_inner_RF: Tensor, weights_TK: Tensor, inverse_TK: Tensor, activation: int
) -> tuple[Tensor, Tensor]:
    """The gradients of ``pre`` and of the weights; that of the inner values becomes their weighted selves."""
    num_rows, width = grad_inner_RF.shape
    grad_pre, grad_weights_TK = pre.new_empty(pre.shape), weights_TK.new_empty(weights_TK.shape)
    num_slots = inverse_TK.numel()
    if num_slots:
        function, gated = function_of(activation)
        block_f = min(1024, triton.next_power_of_2(max(1, width)))
        block_s = max(1, 1024 // block_f)
        inner_backward_kernel[(triton.cdiv(num_slots, block_s),)](
            pre, grad_inner_RF, weights_TK.contiguous(), inverse_TK.contiguous(), grad_pre, grad_weights_TK,
            num_slots, num_rows, width, FUNCTION=function, GATED=gated, BLOCK_S=block_s, BLOCK_F=block_f,
            enable_fp_fusion=True,
        )  # fmt: skip
    return grad_pre, grad_weights_TK
