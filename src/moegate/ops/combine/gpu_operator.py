"""Tokens from rows on devices that Triton serves, and the gradients between both: allocation and launches."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moegate.ops.combine.gpu_kernel import combine_kernel
from moegate.ops.combine.gpu_kernel_dots import combine_dots_kernel, permute_dots_kernel, row_dots_kernel
from moegate.ops.gpu.row_tiles import adding_tile, copying_tile
from moegate.ops.permute.gpu_operator import BLOCK_R, MOST_UNROLLED, permute, unreached_columns
from moegate.ops.permute.reference import wide_type
from moegate.ops.permute.shapes import check_alike, check_matrix, check_places, check_weights

_WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}


def _check(rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> None:
    check_places(slot_R, inverse_TK)
    check_matrix("rows", rows_RD, slot_R)
    check_weights(weights_TK, inverse_TK, rows_RD.dtype)


def _check_both(rows_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights: Tensor | None) -> None:
    _check(rows_RD, slot_R, inverse_TK, weights)
    check_matrix("hidden", hidden_TD, inverse_TK)
    check_alike(rows_RD, hidden_TD)


def combine(rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """``moegate::combine``."""
    _check(rows_RD, slot_R, inverse_TK, weights_TK)
    num_tokens, top_k = inverse_TK.shape
    num_rows, width = rows_RD.shape
    out_TD = rows_RD.new_empty(num_tokens, width)
    if out_TD.numel() == 0 or top_k == 0:
        return out_TD.zero_()
    tile = copying_tile(num_tokens, width, rows_RD.element_size())
    num_pieces = triton.cdiv(width, tile.block_d)
    combine_kernel[(triton.cdiv(num_tokens, tile.block_t) * num_pieces,)](
        rows_RD, inverse_TK.contiguous(), None if weights_TK is None else weights_TK.contiguous(), out_TD,
        num_tokens, num_rows, width, top_k, num_pieces, *rows_RD.stride(),
        HAS_WEIGHTS=weights_TK is not None, WIDE=_WIDE[wide_type(rows_RD.dtype)], UNROLL=min(MOST_UNROLLED, top_k),
        BLOCK_T=tile.block_t, BLOCK_D=tile.block_d, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out_TD


def row_dots(rows_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor) -> Tensor:
    """``moegate::row_dots``."""
    _check_both(rows_RD, hidden_TD, slot_R, inverse_TK, None)
    num_tokens, top_k = inverse_TK.shape
    dots_TK = rows_RD.new_empty(num_tokens, top_k, dtype=wide_type(rows_RD.dtype))
    if dots_TK.numel():
        sizes = _dot_sizes(rows_RD, min(MOST_UNROLLED, top_k))
        row_dots_kernel[triton.cdiv(num_tokens, sizes["BLOCK_T"]), triton.cdiv(top_k, MOST_UNROLLED)](
            rows_RD, hidden_TD, inverse_TK.contiguous(), dots_TK, num_tokens, *rows_RD.shape, top_k,
            *rows_RD.stride(), *hidden_TD.stride(), UNROLL=min(MOST_UNROLLED, top_k), **sizes,
        )  # fmt: skip
    return dots_TK


def combine_backward(
    grad_TD: Tensor, rows_RD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """``moegate::combine_backward``."""
    _check_both(rows_RD, grad_TD, slot_R, inverse_TK, weights_TK)
    num_tokens, top_k = inverse_TK.shape
    if not _in_one_launch(inverse_TK, rows_RD):
        return permute(grad_TD, slot_R, inverse_TK, weights_TK), row_dots(rows_RD, grad_TD, slot_R, inverse_TK)
    grad_RD = torch.empty_like(rows_RD, memory_format=torch.contiguous_format)
    dots_TK = torch.empty_like(weights_TK, memory_format=torch.contiguous_format)
    sizes = _dot_sizes(rows_RD, top_k)
    num_programs = triton.cdiv(num_tokens, sizes["BLOCK_T"]) + triton.cdiv(rows_RD.shape[0], BLOCK_R)
    permute_dots_kernel[(num_programs,)](
        rows_RD, grad_TD, slot_R.contiguous(), inverse_TK.contiguous(), weights_TK.contiguous(), grad_RD, dots_TK,
        num_tokens, inverse_TK.numel(), *rows_RD.shape, *rows_RD.stride(), *grad_TD.stride(),
        K=top_k, BLOCK_R=BLOCK_R, BLOCK_C=unreached_columns(sizes["BLOCK_T"] * sizes["BLOCK_D"]), **sizes,
    )  # fmt: skip
    return grad_RD, dots_TK


def permute_backward(
    grad_RD: Tensor, hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """``moegate::permute_backward``."""
    _check_both(grad_RD, hidden_TD, slot_R, inverse_TK, weights_TK)
    num_tokens, top_k = inverse_TK.shape
    if not _in_one_launch(inverse_TK, grad_RD):
        return combine(grad_RD, slot_R, inverse_TK, weights_TK), row_dots(grad_RD, hidden_TD, slot_R, inverse_TK)
    grad_TD = torch.empty_like(hidden_TD, memory_format=torch.contiguous_format)
    dots_TK = torch.empty_like(weights_TK, memory_format=torch.contiguous_format)
    sizes = _dot_sizes(grad_RD, top_k)
    combine_dots_kernel[(triton.cdiv(num_tokens, sizes["BLOCK_T"]),)](
        grad_RD, hidden_TD, inverse_TK.contiguous(), weights_TK.contiguous(), grad_TD, dots_TK,
        num_tokens, *grad_RD.shape, *grad_RD.stride(), *hidden_TD.stride(), K=top_k, **sizes,
    )  # fmt: skip
    return grad_TD, dots_TK


def _in_one_launch(inverse_TK: Tensor, rows_RD: Tensor) -> bool:
    """Whether a program can hold all slots of its tokens, and there are some."""
    return 0 < inverse_TK.shape[1] <= MOST_UNROLLED and inverse_TK.numel() > 0 and rows_RD.numel() > 0


def _dot_sizes(rows_RD: Tensor, top_k: int) -> dict[str, Any]:
    """What kernels that add up products are launched with."""
    tile = adding_tile(rows_RD.shape[1], rows_RD.element_size())
    return {
        "WIDE": _WIDE[wide_type(rows_RD.dtype)],
        "BLOCK_K": triton.next_power_of_2(top_k),
        "BLOCK_T": tile.block_t,
        "BLOCK_D": tile.block_d,
        "num_warps": tile.num_warps,
        "enable_fp_fusion": False,
    }
