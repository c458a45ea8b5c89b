"""The grouped products on devices that Triton serves: allocation and launches.

``product`` and ``outer`` write into given memory, with what the kernels can do besides; ``grouped_mm`` and
``grouped_outer`` are the operators.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from moegate.ops.grouped_mm.gpu_kernel import grouped_mm_kernel, grouped_mm_walk_kernel
from moegate.ops.grouped_mm.gpu_kernel_outer import grouped_outer_kernel
from moegate.ops.grouped_mm.gpu_kernel_tiles import tiles_kernel
from moegate.ops.grouped_mm.gpu_sizes import (
    is_aligned,
    machine_of,
    outer_cut,
    product_cut,
    tile_rows,
)
from moegate.ops.grouped_mm.gpu_torch import ends_of, torch_grouped_mm, torch_grouped_outer, uses_torch, zero_tail
from moegate.ops.grouped_mm.reference import (
    check_grouped_mm,
    check_grouped_outer,
    grouped_mm_reference,
    grouped_outer_reference,
)
from moegate.ops.library import falls_back

__all__ = ["Slots", "Tiles", "grouped_mm", "grouped_outer", "most_tiles", "outer", "product", "readable", "tiles_of"]

ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)
"""The types that the kernels take; sums are float32."""
_LONG_SUMS = 2048
"""The mean of a group's rows from which on a sum over them is long against its beginning and its end."""
_TILES_AT_ONCE = 32
_GROUPS_AT_ONCE = 512


@dataclass(frozen=True)
class Tiles:
    """A table of tiles ``[3, N]`` (group, first row, end of the rows), made on the device, of ``rows`` rows each.

    A group of -1 is a tile that has nothing to do; group ``E`` has no matrix, its rows become zeros.
    """

    table: Tensor
    rows: int


@dataclass(frozen=True)
class Slots:
    """For products that read tokens instead of rows: the slot of each row, and how many slots a token has.

    A row whose slot is below 0 or not below ``count`` reads zeros.
    """

    slot_R: Tensor | None
    count: int
    of_token: int


_NO_SLOTS = Slots(None, 0, 1)


def most_tiles(num_rows: int, num_groups: int, rows: int) -> int:
    """How many tiles there can be at most, whatever the offsets.

    Example:
        >>> most_tiles(6, 3, 4)
        4
    """
    parts = min(num_groups + 1, num_rows)  # with a row each; what is left fills whole tiles
    return parts + (num_rows - parts) // rows


def tiles_of(offsets_E: Tensor, num_rows: int, element: torch.dtype) -> Tiles:
    """The tiles of sorted rows; good for every product of these rows."""
    num_groups = offsets_E.shape[0]
    rows = tile_rows(num_rows, num_groups, element)
    most = most_tiles(num_rows, num_groups, rows)
    table = torch.empty(3, most, dtype=torch.int64, device=offsets_E.device)
    if most:
        block_e = min(_GROUPS_AT_ONCE, triton.next_power_of_2(num_groups + 1))
        tiles_kernel[(triton.cdiv(most, _TILES_AT_ONCE),)](
            offsets_E.contiguous(), table, num_groups, num_rows, most,
            BLOCK_R=rows, BLOCK_N=_TILES_AT_ONCE, BLOCK_E=block_e, enable_fp_fusion=True,
        )  # fmt: skip
    return Tiles(table, rows)


def product(  # noqa: PLR0913 - what the kernel can do
    left: Tensor,
    weight_EOI: Tensor,
    tiles: Tiles,
    out_RO: Tensor,
    *,
    gathered: Slots | None = None,
    scaled: tuple[Slots, Tensor] | None = None,
    function: str | None = None,
    gated: bool = False,
    pre: Tensor | None = None,
) -> None:
    """Writes ``weight[e] @ left[r]``, or what an activation makes of it, for every row of the tiles.

    Args:
        left: ``[R, I]``, or ``[T, I]`` with ``gathered``; any strides.
        weight_EOI: ``[E, O, I]``, or ``[E, 2O, I]`` where ``gated``; any strides.
        tiles: from ``tiles_of``, or a table made otherwise.
        out_RO: ``[R, O]``, contiguous, the type of both sides.
        gathered: row ``r`` reads ``left[slot[r] // of_token]``.
        scaled: multiplies the product of row ``r`` by ``scale[slot[r]]``, in float32, before anything else.
        function: ``silu``, ``gelu``, ``relu2`` or ``relu`` of the product.
        gated: the function is of the first ``O`` outputs, and multiplied by the others.
        pre: ``[R, O]`` or ``[R, 2O]``, contiguous: the products themselves, for a backward.
    """
    num_outputs, num_inputs = out_RO.shape[1], left.shape[1]
    if out_RO.numel() == 0:
        return
    if left.numel() == 0 or weight_EOI.shape[0] == 0:
        out_RO.zero_()
        if pre is not None:
            pre.zero_()
        return
    slots, scale = scaled or (gathered or _NO_SLOTS, None)
    most, machine = tiles.table.shape[1], machine_of(left.device)
    cut = product_cut(
        most, tiles.rows, num_outputs, num_inputs, left.dtype,
        sides=2 if gated else 1, function=function, aligned=is_aligned(left, weight_EOI), machine=machine,
    )  # fmt: skip
    programs = most * triton.cdiv(num_outputs, cut.outputs)
    walkers = cut.walkers * machine.multiprocessors
    kernel = grouped_mm_walk_kernel if walkers else grouped_mm_kernel
    kernel[(min(programs, walkers or programs),)](
        left, weight_EOI, tiles.table, slots.slot_R, scale, out_RO, pre,
        most, weight_EOI.shape[0], num_inputs, num_outputs, slots.count, *left.stride(), *weight_EOI.stride(),
        GATHER=gathered is not None, SCALE=scaled is not None, FUNCTION=function, GATED=gated, KEEP=pre is not None,
        PRECISION=precision_of(left.dtype), SLOTS_OF_ROW=slots.of_token,
        EVEN_O=num_outputs % cut.outputs == 0, EVEN_I=num_inputs % cut.inputs == 0,
        BLOCK_R=tiles.rows, BLOCK_O=cut.outputs, BLOCK_I=cut.inputs, WINDOW=8 if tiles.rows > 16 else 1,
        num_warps=cut.warps, num_stages=cut.stages, enable_fp_fusion=True,
    )  # fmt: skip


def outer(
    left: Tensor,
    right: Tensor,
    offsets_E: Tensor,
    out_EOI: Tensor,
    *,
    gathered_left: Slots | None = None,
    gathered_right: Slots | None = None,
    add: bool = False,
) -> None:
    """Writes ``Σ_r left[r] ⊗ right[r]`` over the rows of each group, or adds it.

    Args:
        left: ``[R, O]``, or ``[T, O]`` with ``gathered_left``; any strides.
        right: ``[R, I]``, or ``[T, I]`` with ``gathered_right``.
        offsets_E: ``[E]`` int64.
        out_EOI: contiguous, the type of the sides or float32.
        gathered_left: row ``r`` of the left is ``left[slot[r] // of_token]``. One side at most is gathered.
        gathered_right: the same for the right.
        add: adds to what is there, and leaves groups without rows alone; else those get zeros.
    """
    num_groups, num_outputs, num_inputs = out_EOI.shape
    if out_EOI.numel() == 0:
        return
    if min(left.shape[0], right.shape[0]) == 0:
        if not add:
            out_EOI.zero_()
        return
    slots = gathered_left or gathered_right or _NO_SLOTS
    num_rows = (right if gathered_left else left).shape[0]
    cut = outer_cut(
        num_outputs, num_inputs, left.dtype, steady=num_rows >= _LONG_SUMS * num_groups and out_EOI.itemsize == 2,
        aligned=is_aligned(left, right), machine=machine_of(left.device),
    )  # fmt: skip
    blocks = triton.cdiv(num_outputs, cut.left) * triton.cdiv(num_inputs, cut.right)
    grouped_outer_kernel[(num_groups * blocks,)](
        left, right, offsets_E.contiguous(), slots.slot_R, out_EOI,
        num_rows, num_outputs, num_inputs, slots.count, *left.stride(), *right.stride(),
        GATHER_LEFT=gathered_left is not None, GATHER_RIGHT=gathered_right is not None, ADD=add,
        PRECISION=precision_of(left.dtype), SLOTS_OF_ROW=slots.of_token,
        EVEN_O=num_outputs % cut.left == 0, EVEN_I=num_inputs % cut.right == 0,
        BLOCK_O=cut.left, BLOCK_I=cut.right, BLOCK_R=cut.rows,
        num_warps=cut.warps, num_stages=cut.stages, enable_fp_fusion=True,
    )  # fmt: skip


def precision_of(element: torch.dtype) -> str:
    """How float32 values are multiplied: whole, unless PyTorch's own products may shorten them to TF32.

    Example:
        >>> precision_of(torch.float32)
        'ieee'
    """
    if element is not torch.float32:
        return "ieee"
    settings = torch.backends.cuda.matmul
    if hasattr(settings, "fp32_precision"):
        return "tf32" if settings.fp32_precision == "tf32" else "ieee"
    return "tf32" if settings.allow_tf32 else "ieee"


def grouped_mm(rows_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """``moegate::grouped_mm``."""
    check_grouped_mm(rows_RI, weight_EOI, offsets_E)
    if rows_RI.dtype not in ELEMENTS:
        falls_back("grouped_mm", f"{rows_RI.dtype} is for checking gradients")
        return grouped_mm_reference(rows_RI, weight_EOI, offsets_E)
    rows_RI = readable(rows_RI)
    if uses_torch(rows_RI.shape[0], offsets_E, rows_RI, weight_EOI):
        out_RO = torch_grouped_mm(rows_RI, weight_EOI, ends_of(offsets_E, rows_RI.shape[0]))
        zero_tail(out_RO, offsets_E)
        return out_RO
    out_RO = rows_RI.new_empty(rows_RI.shape[0], weight_EOI.shape[1])
    product(rows_RI, weight_EOI, tiles_of(offsets_E, rows_RI.shape[0], rows_RI.dtype), out_RO)
    return out_RO


def grouped_outer(left_RO: Tensor, right_RI: Tensor, offsets_E: Tensor) -> Tensor:
    """``moegate::grouped_outer``."""
    check_grouped_outer(left_RO, right_RI, offsets_E)
    if left_RO.dtype not in ELEMENTS:
        falls_back("grouped_outer", f"{left_RO.dtype} is for checking gradients")
        return grouped_outer_reference(left_RO, right_RI, offsets_E)
    left_RO, right_RI = readable(left_RO), readable(right_RI)
    if uses_torch(left_RO.shape[0], offsets_E, left_RO, right_RI):
        return torch_grouped_outer(left_RO, right_RI, ends_of(offsets_E, left_RO.shape[0]))
    out_EOI = left_RO.new_empty(offsets_E.shape[0], left_RO.shape[1], right_RI.shape[1])
    outer(left_RO, right_RI, offsets_E, out_EOI)
    return out_EOI


def readable(rows: Tensor) -> Tensor:
    """Rows whose elements lie side by side: others, such as an expanded gradient, are copied to be read in one piece.

    Example:
        >>> readable(torch.zeros(1, 1).expand(2, 3)).stride()
        (3, 1)
    """
    return rows if rows.stride(1) == 1 else rows.contiguous()
