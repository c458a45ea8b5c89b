"""Tokens from rows on devices that Triton serves, and the gradients between both: sizes, allocation, launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moegate.ops.combine.gpu_kernel import combine_kernel, row_dots_kernel
from moegate.ops.permute.gpu_operator import permute
from moegate.ops.permute.reference import wide_type
from moegate.ops.permute.shapes import check_alike, check_matrix, check_places, check_weights

_WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}


def combine(rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """``moegate::combine``."""
    check_places(slot_R, inverse_TK)
    check_matrix("rows", rows_RD, slot_R)
    check_weights(weights_TK, inverse_TK, rows_RD.dtype)
    num_tokens, top_k = inverse_TK.shape
    num_rows, width = rows_RD.shape
    out_TD = rows_RD.new_empty(num_tokens, width)
    if out_TD.numel():
        block_d = min(1024, triton.next_power_of_2(width))
        block_t = max(1, 512 // block_d)
        combine_kernel[triton.cdiv(num_tokens, block_t), triton.cdiv(width, block_d)](
            rows_RD, inverse_TK.contiguous(), None if weights_TK is None else weights_TK.contiguous(), out_TD,
            num_tokens, num_rows, width, *rows_RD.stride(),
            K=top_k, HAS_WEIGHTS=weights_TK is not None, WIDE=_WIDE[wide_type(rows_RD.dtype)],
            BLOCK_T=block_t, BLOCK_D=block_d, enable_fp_fusion=False,
        )  # fmt: skip
    return out_TD


def row_dots(rows_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor) -> Tensor:
    """``moegate::row_dots``."""
    check_places(slot_R, inverse_TK)
    check_matrix("rows", rows_RD, slot_R)
    check_matrix("hidden", hidden_TD, inverse_TK)
    check_alike(rows_RD, hidden_TD)
    num_tokens, top_k = inverse_TK.shape
    wide = wide_type(rows_RD.dtype)
    dots_TK = rows_RD.new_empty(num_tokens, top_k, dtype=wide)
    if dots_TK.numel():
        num_rows, width = rows_RD.shape
        block_k = min(8, triton.next_power_of_2(top_k))
        block_d = min(512, triton.next_power_of_2(max(1, width)))
        row_dots_kernel[num_tokens, triton.cdiv(top_k, block_k)](
            rows_RD, hidden_TD, inverse_TK.contiguous(), dots_TK, num_tokens, num_rows, width,
            *rows_RD.stride(), *hidden_TD.stride(),
            K=top_k, WIDE=_WIDE[wide], BLOCK_K=block_k, BLOCK_D=block_d,
        )  # fmt: skip
    return dots_TK


def combine_backward(
    grad_TD: Tensor, rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """``moegate::combine_backward``."""
    return permute(grad_TD, slot_R, inverse_TK, weights_TK), row_dots(rows_RD, grad_TD, slot_R, inverse_TK)


def permute_backward(
    grad_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """``moegate::permute_backward``."""
    return combine(grad_RD, slot_R, inverse_TK, weights_TK), row_dots(grad_RD, hidden_TD, slot_R, inverse_TK)
