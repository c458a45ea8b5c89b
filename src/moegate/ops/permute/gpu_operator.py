"""Rows from tokens on devices that Triton serves: allocation and launch."""

import triton
from torch import Tensor

from moegate.ops.gpu.row_tiles import copying_tile
from moegate.ops.permute.gpu_kernel import permute_kernel
from moegate.ops.permute.shapes import check_matrix, check_places, check_weights

BLOCK_R = 16
"""Rows that a program looks at which writes those that no token reaches."""
MOST_UNROLLED = 16
"""Slots of a token whose rows are on their way at once."""


def unreached_columns(tile_size: int) -> int:
    """Columns of those rows that such a program takes at a time, as large a tile as the others'."""
    return max(16, tile_size // BLOCK_R)


def permute(hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """``moegate::permute``."""
    check_places(slot_R, inverse_TK)
    check_matrix("hidden", hidden_TD, inverse_TK)
    check_weights(weights_TK, inverse_TK, hidden_TD.dtype)
    num_tokens, top_k = inverse_TK.shape
    num_rows, width = slot_R.shape[0], hidden_TD.shape[1]
    rows_RD = hidden_TD.new_empty(num_rows, width)
    if rows_RD.numel() == 0 or inverse_TK.numel() == 0:
        return rows_RD.zero_()
    tile = copying_tile(num_tokens, width, hidden_TD.element_size())
    num_pieces = triton.cdiv(width, tile.block_d)
    num_programs = triton.cdiv(num_tokens, tile.block_t) * num_pieces + triton.cdiv(num_rows, BLOCK_R)
    permute_kernel[(num_programs,)](
        hidden_TD, slot_R.contiguous(), inverse_TK.contiguous(),
        None if weights_TK is None else weights_TK.contiguous(), rows_RD,
        num_tokens, inverse_TK.numel(), num_rows, width, top_k, num_pieces, *hidden_TD.stride(),
        HAS_WEIGHTS=weights_TK is not None, UNROLL=min(MOST_UNROLLED, top_k),
        BLOCK_T=tile.block_t, BLOCK_D=tile.block_d, BLOCK_R=BLOCK_R,
        BLOCK_C=unreached_columns(tile.block_t * tile.block_d),
        num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return rows_RD
