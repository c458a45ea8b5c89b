"""The experts on devices that Triton serves: grouped products around the activation.

Where each expert has many rows the products are PyTorch's, with a kernel for the activation between them; elsewhere
Triton's, of which the first applies the activation itself.
"""

import torch
import triton
from torch import Tensor

from moegate.ops.experts.activations import function_of
from moegate.ops.experts.backward import check_buffers, experts_backward_into_reference
from moegate.ops.experts.backward_reference import check_shapes, experts_backward_reference
from moegate.ops.experts.forward import check_sizes, experts_reference
from moegate.ops.experts.gpu_kernel import activation_backward_kernel, activation_kernel
from moegate.ops.gpu.sizes import block_of_rows
from moegate.ops.grouped_mm.gpu_operator import ELEMENTS, Tiles, grouped_outer, outer, product, readable, tiles_of
from moegate.ops.grouped_mm.gpu_torch import ends_of, torch_grouped_mm, uses_torch, zero_tail
from moegate.ops.library import falls_back

__all__ = ["experts", "experts_backward", "experts_backward_into"]


def experts(
    rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """``moegate::experts``."""
    check_sizes(rows_RD, up, down_EDF, offsets_E, activation)
    _check_types(offsets_E, rows_RD, up, down_EDF)
    if rows_RD.dtype not in ELEMENTS:
        falls_back("experts", f"{rows_RD.dtype} is for checking gradients")
        return experts_reference(rows_RD, up, down_EDF, offsets_E, activation, keep)
    num_rows, width = rows_RD.shape[0], down_EDF.shape[2]
    rows_RD, inner_RF = readable(rows_RD), rows_RD.new_empty(num_rows, width)
    if uses_torch(num_rows, offsets_E, rows_RD, up, down_EDF, inner_RF):
        ends_E = ends_of(offsets_E, num_rows)
        pre = torch_grouped_mm(rows_RD, up, ends_E)
        _activate(pre, offsets_E, inner_RF, activation)
        out_RD = torch_grouped_mm(inner_RF, down_EDF, ends_E)
        zero_tail(out_RD, offsets_E)
        return out_RD, pre if keep else pre.new_empty(0, up.shape[1])
    pre, out_RD = rows_RD.new_empty(num_rows if keep else 0, up.shape[1]), rows_RD.new_empty(rows_RD.shape)
    function, gated = function_of(activation)
    tiles = tiles_of(offsets_E, num_rows, rows_RD.dtype)
    product(rows_RD, up, tiles, inner_RF, function=function, gated=gated, pre=pre if keep else None)
    product(inner_RF, down_EDF, tiles, out_RD)
    return out_RD, pre


def experts_backward(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_RD: Tensor,
    rows_RD: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: int,
    needs_rows: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``moegate::experts_backward``."""
    tensors = (grad_out_RD, rows_RD, pre, up, down_EDF)
    check_shapes(*tensors, activation)
    _check_types(offsets_E, *tensors)
    if rows_RD.dtype not in ELEMENTS:
        falls_back("experts_backward", f"{rows_RD.dtype} is for checking gradients")
        return experts_backward_reference(*tensors, offsets_E, activation, needs_rows, needs_weights)
    grad_out_RD = readable(grad_out_RD)
    inner_RF, grad_pre, grad_rows_RD = _through_rows(
        grad_out_RD, pre, (up, down_EDF), offsets_E, activation, needs_rows
    )
    if not needs_weights:
        return grad_rows_RD, up.new_empty(0), down_EDF.new_empty(0)
    return grad_rows_RD, grouped_outer(grad_pre, rows_RD, offsets_E), grouped_outer(grad_out_RD, inner_RF, offsets_E)


def experts_backward_into(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_RD: Tensor,
    rows_RD: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: int,
    needs_rows: bool,
    grad_up: Tensor,
    grad_down_EDF: Tensor,
) -> Tensor:
    """``moegate::experts_backward_into``."""
    tensors = (grad_out_RD, rows_RD, pre, up, down_EDF)
    check_shapes(*tensors, activation)
    _check_types(offsets_E, *tensors)
    check_buffers((grad_up, grad_down_EDF), (up, down_EDF))
    if rows_RD.dtype not in ELEMENTS:
        falls_back("experts_backward_into", f"{rows_RD.dtype} is for checking gradients")
        return experts_backward_into_reference(*tensors, offsets_E, activation, needs_rows, grad_up, grad_down_EDF)
    grad_out_RD = readable(grad_out_RD)
    inner_RF, grad_pre, grad_rows_RD = _through_rows(
        grad_out_RD, pre, (up, down_EDF), offsets_E, activation, needs_rows
    )
    outer(grad_pre, readable(rows_RD), offsets_E, grad_up, add=True)
    outer(grad_out_RD, inner_RF, offsets_E, grad_down_EDF, add=True)
    return grad_rows_RD


def _through_rows(
    grad_out_RD: Tensor,
    pre: Tensor,
    weights: tuple[Tensor, Tensor],
    offsets_E: Tensor,
    activation: int,
    needs_rows: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The inner values once more, the gradient of ``pre``, and that of the rows, empty where nobody needs it."""
    up, down_EDF = weights
    num_rows = grad_out_RD.shape[0]
    inner_RF, grad_pre = pre.new_empty(num_rows, down_EDF.shape[2]), pre.new_empty(pre.shape)
    by_torch = uses_torch(num_rows, offsets_E, grad_out_RD, up, down_EDF, inner_RF)
    cut = ends_of(offsets_E, num_rows) if by_torch else tiles_of(offsets_E, num_rows, pre.dtype)
    grad_inner_RF = _product(grad_out_RD, down_EDF.mT, cut)
    _activation_backward(pre.contiguous(), grad_inner_RF, inner_RF, grad_pre, activation)
    if not needs_rows:
        return inner_RF, grad_pre, pre.new_empty(0)
    grad_rows_RD = _product(grad_pre, up.mT, cut)
    if by_torch:
        zero_tail(grad_rows_RD, offsets_E)
    return inner_RF, grad_pre, grad_rows_RD


def _product(rows_RI: Tensor, weight_EOI: Tensor, cut: Tiles | Tensor) -> Tensor:
    """``weight[e] @ rows[r]``, by the tiles of Triton's kernel or the ends of PyTorch's product."""
    if isinstance(cut, Tensor):
        return torch_grouped_mm(rows_RI, weight_EOI, cut)
    out_RO = rows_RI.new_empty(rows_RI.shape[0], weight_EOI.shape[1])
    product(rows_RI, weight_EOI, cut, out_RO)
    return out_RO


def _activate(pre: Tensor, offsets_E: Tensor, inner_RF: Tensor, activation: int) -> None:
    """Writes the inner values of ``pre``; zeros to both for rows behind the last expert's."""
    num_rows, width = inner_RF.shape
    if inner_RF.numel() == 0:
        return
    function, gated = function_of(activation)
    block_r, block_f = block_of_rows(width)
    activation_kernel[(triton.cdiv(num_rows, block_r), triton.cdiv(width, block_f))](
        pre, offsets_E, inner_RF, offsets_E.shape[0], num_rows, width,
        FUNCTION=function, GATED=gated, BLOCK_R=block_r, BLOCK_F=block_f, enable_fp_fusion=True,
    )  # fmt: skip


def _activation_backward(
    pre: Tensor, grad_inner_RF: Tensor, inner_RF: Tensor, grad_pre: Tensor, activation: int
) -> None:
    """Writes the inner values once more, and the gradient of ``pre``; all are contiguous."""
    num_rows, width = inner_RF.shape
    if inner_RF.numel() == 0:
        return
    function, gated = function_of(activation)
    block_r, block_f = block_of_rows(width)
    activation_backward_kernel[(triton.cdiv(num_rows, block_r), triton.cdiv(width, block_f))](
        pre, grad_inner_RF, inner_RF, grad_pre, num_rows, width,
        FUNCTION=function, GATED=gated, BLOCK_R=block_r, BLOCK_F=block_f, enable_fp_fusion=True,
    )  # fmt: skip


def _check_types(offsets_E: Tensor, *tensors: Tensor) -> None:
    types = {tensor.dtype for tensor in tensors}
    if len(types) > 1 or not tensors[0].is_floating_point():
        raise RuntimeError(f"Rows and weights must have one floating type, got {', '.join(map(str, types))}.")
    if offsets_E.dtype is not torch.int64:
        raise RuntimeError(f"offsets must be int64, got {offsets_E.dtype}.")
