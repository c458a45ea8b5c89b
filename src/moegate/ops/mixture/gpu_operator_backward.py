"""The backward of a layer's second half on devices that Triton serves: a launch each step, and none adds atomically."""

import triton
from torch import Tensor

from moegate.ops.combine.gpu_operator import combine
from moegate.ops.experts.activations import function_of
from moegate.ops.gpu.sizes import block_of_rows
from moegate.ops.grouped_mm.gpu_operator import ELEMENTS, outer, product, readable
from moegate.ops.library import falls_back
from moegate.ops.mixture.arguments import check_kept
from moegate.ops.mixture.gpu_kernel_backward import inner_backward_kernel
from moegate.ops.mixture.gpu_products import Rows, product_of_rows
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
        falls_back("trained_mixture_backward", f"{pre.dtype} is for checking gradients")
        return trained_mixture_backward_reference(
            grad_out_TD, hidden_TD, weights_TK, slot_R, inverse_TK, offsets_E, pre, up, down_EDF,
            activation, needs_hidden, needs_weights, needs_projections,
        )  # fmt: skip
    check_kept(grad_out_TD, hidden_TD, weights_TK, slot_R, inverse_TK, offsets_E, pre, up, down_EDF, activation)
    rows = Rows.of(slot_R, inverse_TK, offsets_E, pre)
    grad_out_TD = readable(grad_out_TD)
    # It holds the gradient of the inner values until these are computed once more, weighted, in its place.
    inner_RF = pre.new_empty(slot_R.shape[0], down_EDF.shape[2])
    product(grad_out_TD, down_EDF.mT, rows.tiles, inner_RF, gathered=rows.slots)
    grad_pre, grad_weights_TK = _inner_backward(pre.contiguous(), inner_RF, weights_TK, inverse_TK, activation)
    grad_hidden_TD, grad_up, grad_down_EDF = (hidden_TD.new_empty(0) for _ in range(3))
    if needs_hidden:
        grad_hidden_TD = combine(product_of_rows(grad_pre, up.mT, rows), slot_R, inverse_TK, None)
    if needs_projections:
        grad_up, grad_down_EDF = up.new_empty(up.shape), down_EDF.new_empty(down_EDF.shape)
        outer(grad_pre, readable(hidden_TD), offsets_E, grad_up, gathered_right=rows.slots)
        outer(grad_out_TD, inner_RF, offsets_E, grad_down_EDF, gathered_left=rows.slots)
    return grad_hidden_TD, grad_weights_TK if needs_weights else weights_TK.new_empty(0), grad_up, grad_down_EDF


def _inner_backward(
    pre: Tensor, inner_RF: Tensor, weights_TK: Tensor, inverse_TK: Tensor, activation: int
) -> tuple[Tensor, Tensor]:
    """The gradients of ``pre`` and of the weights; the gradient in ``inner`` becomes the weighted inner values."""
    num_rows, width = inner_RF.shape
    grad_pre, grad_weights_TK = pre.new_empty(pre.shape), weights_TK.new_empty(weights_TK.shape)
    if num_rows:
        function, gated = function_of(activation)
        block_s, block_f = block_of_rows(width)
        inner_backward_kernel[(triton.cdiv(num_rows, block_s),)](
            pre, inner_RF, weights_TK.contiguous(), inverse_TK.contiguous(), grad_pre, grad_weights_TK,
            inverse_TK.numel(), num_rows, width,
            FUNCTION=function, GATED=gated, BLOCK_S=block_s, BLOCK_F=block_f, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return grad_pre, grad_weights_TK
