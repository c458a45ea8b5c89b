"""Matrix products of sorted rows in Triton: one program, one tile of one group's product.

How many tiles a group has is known on the device alone, so as many programs are launched as there can be; each reads
its rows from a table of tiles (``gpu_kernel_tiles``), and those beyond the last have nothing to do.
"""

import triton
import triton.language as tl

from moegate.ops.gpu.activation import activated
from moegate.ops.gpu.rounding import added_product, rounded


@triton.jit
def grouped_mm_kernel(
    left_ptr, weight_ptr, tiles_ptr, slot_ptr, scale_ptr, out_ptr, pre_ptr,
    most_tiles, num_groups, num_inputs, num_outputs, num_slots,
    stride_r, stride_ri, stride_e, stride_o, stride_i,
    GATHER: tl.constexpr, SCALE: tl.constexpr, FUNCTION: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr, SLOTS_OF_ROW: tl.constexpr, EVEN_O: tl.constexpr, EVEN_I: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """``out[r] = weight[e] @ left[r]`` for one tile of rows and ``BLOCK_O`` outputs; 0 for rows without a group.

    With ``GATHER`` row ``r`` of the left is ``left[slot[r] // SLOTS_OF_ROW]``, or zeros where the slot is none of
    ``num_slots``. With ``SCALE`` the product is multiplied by ``scale[slot[r]]``. With a ``FUNCTION`` what is written
    is ``act(product)``; ``GATED``, ``act(product) · other``, where ``other`` is the product with the weights' rows
    ``num_outputs`` further on. With ``KEEP`` the products themselves are written to ``pre`` too, side by side.
    ``EVEN_O`` and ``EVEN_I`` say that the blocks divide the sizes.
    """
    tile, block_o = _place(tl.program_id(0), most_tiles, tl.cdiv(num_outputs, BLOCK_O), WINDOW)
    group = tl.load(tiles_ptr + tile)
    first = tl.load(tiles_ptr + most_tiles + tile)
    end = tl.load(tiles_ptr + 2 * most_tiles + tile)
    if group < 0:
        return
    num_rows = tl.minimum(end - first, BLOCK_R).to(tl.int32)
    row_r = tl.arange(0, BLOCK_R)
    output_o, inside_o = _outputs(block_o, num_outputs, GATED, BLOCK_O)
    source_r, slot_r, found_r = _sources(
        slot_ptr, first, row_r, num_rows, num_slots, SLOTS_OF_ROW, GATHER, GATHER or SCALE
    )
    input_i = tl.arange(0, BLOCK_I)
    left_ri = left_ptr + source_r[:, None] * stride_r + input_i[None, :].to(tl.int64) * stride_ri
    weight_io = weight_ptr + group * stride_e + output_o[None, :] * stride_o
    weight_io += input_i.to(tl.int64)[:, None] * stride_i
    sum_ro = tl.zeros((BLOCK_R, output_o.shape[0]), tl.float32)
    for start in range(0, tl.where(group < num_groups, num_inputs, 0), BLOCK_I):
        left = _block(left_ri, row_r < num_rows, start + input_i < num_inputs, BLOCK_R < 64, not EVEN_I)
        right = _block(weight_io, start + input_i < num_inputs, inside_o, not EVEN_I, not EVEN_O)
        sum_ro = added_product(left, right, sum_ro, PRECISION)
        left_ri += BLOCK_I * stride_ri
        weight_io += BLOCK_I * stride_i
    _write(
        sum_ro, slot_r, found_r, scale_ptr, out_ptr, pre_ptr, first, row_r, num_rows, block_o, num_outputs,
        GATHER, SCALE, FUNCTION, GATED, KEEP, BLOCK_O,
    )  # fmt: skip


@triton.jit
def grouped_mm_walk_kernel(
    left_ptr, weight_ptr, tiles_ptr, slot_ptr, scale_ptr, out_ptr, pre_ptr,
    most_tiles, num_groups, num_inputs, num_outputs, num_slots,
    stride_r, stride_ri, stride_e, stride_o, stride_i,
    GATHER: tl.constexpr, SCALE: tl.constexpr, FUNCTION: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr, SLOTS_OF_ROW: tl.constexpr, EVEN_O: tl.constexpr, EVEN_I: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """``grouped_mm_kernel`` for few programs that walk over all tiles, so that one tile's loads overlap another's end.

    The walk and the sum are one flat loop to the compiler. Tiles without a group are written behind it.
    """
    blocks = tl.cdiv(num_outputs, BLOCK_O)
    real_tiles, has_tail = _number_of_tiles(tiles_ptr, most_tiles, num_groups)
    row_r, input_i = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_I)
    for place in tl.range(tl.program_id(0), real_tiles * blocks, tl.num_programs(0), flatten=True):
        tile, block_o = _place(place, real_tiles, blocks, WINDOW)
        group = tl.load(tiles_ptr + tile)
        first = tl.load(tiles_ptr + most_tiles + tile)
        num_rows = tl.minimum(tl.load(tiles_ptr + 2 * most_tiles + tile) - first, BLOCK_R).to(tl.int32)
        source_r, slot_r, found_r = _sources(
            slot_ptr, first, row_r, num_rows, num_slots, SLOTS_OF_ROW, GATHER, GATHER or SCALE
        )
        output_o, inside_o = _outputs(block_o, num_outputs, GATED, BLOCK_O)
        left_r1 = left_ptr + source_r[:, None] * stride_r
        weight_1o = weight_ptr + group * stride_e + output_o[None, :] * stride_o
        sum_ro = tl.zeros((BLOCK_R, output_o.shape[0]), tl.float32)
        for step in range(tl.cdiv(num_inputs, BLOCK_I)):
            at_i = step * BLOCK_I + input_i
            inside_i = at_i < num_inputs
            left = _block(left_r1 + at_i[None, :] * stride_ri, inside_o, inside_i, False, not EVEN_I)
            right = _block(weight_1o + at_i[:, None] * stride_i, inside_i, inside_o, not EVEN_I, not EVEN_O)
            sum_ro = added_product(left, right, sum_ro, PRECISION)
        _write(
            sum_ro, slot_r, found_r, scale_ptr, out_ptr, pre_ptr, first, row_r, num_rows, block_o,
            num_outputs, GATHER, SCALE, FUNCTION, GATED, KEEP, BLOCK_O,
        )  # fmt: skip
    tail = tl.load(tiles_ptr + most_tiles + real_tiles, mask=has_tail, other=0)
    end = tl.load(tiles_ptr + 2 * most_tiles + real_tiles, mask=has_tail, other=0)
    for row in range(tail + tl.program_id(0), end, tl.num_programs(0)):
        _write_zeros(out_ptr + row * num_outputs, num_outputs)
        if KEEP:
            sides: tl.constexpr = 2 if GATED else 1
            _write_zeros(pre_ptr + row * (sides * num_outputs), sides * num_outputs)


@triton.jit
def _number_of_tiles(tiles_ptr, most_tiles, num_groups):
    """How many tiles have a matrix, which come first, and whether rows without one follow."""
    real, every = tl.zeros((1024,), tl.int32), tl.zeros((1024,), tl.int32)
    for begin in range(0, most_tiles, 1024):
        tile = begin + tl.arange(0, 1024)
        group = tl.load(tiles_ptr + tile, mask=tile < most_tiles, other=-1)
        every += (group >= 0).to(tl.int32)
        real += ((group >= 0) & (group < num_groups)).to(tl.int32)
    real = tl.sum(real, axis=0)
    return real, tl.sum(every, axis=0) > real


@triton.jit
def _write_zeros(row_ptr, width):
    for start in range(0, width, 1024):
        column = start + tl.arange(0, 1024)
        tl.store(row_ptr + column, tl.zeros((1024,), row_ptr.dtype.element_ty), mask=column < width)


@triton.jit
def _write(
    sum_ro, slot_r, found_r, scale_ptr, out_ptr, pre_ptr, first, row_r, num_rows, block_o, num_outputs,
    GATHER: tl.constexpr, SCALE: tl.constexpr, FUNCTION: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Writes one block of a tile: the sums, or what the activation makes of them."""
    element: tl.constexpr = out_ptr.dtype.element_ty
    scale_r = tl.full(row_r.shape, 1.0, tl.float32)
    if SCALE:
        scale_r = tl.load(scale_ptr + slot_r, mask=found_r, other=0.0).to(tl.float32)
    gate_ro = _finished(sum_ro, scale_r, found_r, element, SCALE, GATHER)
    up_ro = gate_ro
    if GATED:
        gate_ro, up_ro = tl.split(tl.permute(tl.reshape(gate_ro, (sum_ro.shape[0], 2, BLOCK_O)), (0, 2, 1)))
    # What differs between tiles is one number, so that a walk has no more to carry.
    begin_o = block_o * BLOCK_O
    column_o = tl.arange(0, BLOCK_O)
    inside_ro = (row_r < num_rows)[:, None] & (column_o < num_outputs - begin_o)[None, :]
    if KEEP:
        sides: tl.constexpr = 2 if GATED else 1
        pre_ro = pre_ptr + (first * (sides * num_outputs) + begin_o)
        pre_ro += row_r[:, None].to(tl.int64) * (sides * num_outputs) + column_o[None, :]
        tl.store(pre_ro, gate_ro, mask=inside_ro)
        if GATED:
            tl.store(pre_ro + num_outputs, up_ro, mask=inside_ro)
    if FUNCTION is not None:
        gate_ro = activated(gate_ro, up_ro, FUNCTION, GATED, element)
    out_ro = out_ptr + (first * num_outputs + begin_o)
    tl.store(out_ro + row_r[:, None].to(tl.int64) * num_outputs + column_o[None, :], gate_ro, mask=inside_ro)


@triton.jit
def _place(program, most_tiles, blocks, WINDOW: tl.constexpr):
    """The tile of rows and the block of outputs of a program: those of ``WINDOW`` tiles run near one another."""
    first = program // (WINDOW * blocks) * WINDOW
    within = program % (WINDOW * blocks)
    height = tl.minimum(most_tiles - first, WINDOW)
    return first + within % height, within // height


@triton.jit
def _sources(
    slot_ptr, first, row_r, num_rows, num_slots,
    SLOTS_OF_ROW: tl.constexpr, GATHER: tl.constexpr, HAS_SLOTS: tl.constexpr,
):  # fmt: skip
    """Which row of the left each row reads, its slot, and whether it has one; lanes behind the tile read its last."""
    source_r = first + tl.minimum(row_r, num_rows - 1)
    slot_r = source_r
    found_r = row_r < num_rows
    if HAS_SLOTS:
        slot_r = tl.load(slot_ptr + source_r).to(tl.int64)
        found_r = found_r & (slot_r >= 0) & (slot_r < num_slots)
        slot_r = tl.where(found_r, slot_r, 0)
    if GATHER:
        source_r = slot_r // SLOTS_OF_ROW
    return source_r, slot_r, found_r


@triton.jit
def _outputs(block_o, num_outputs, GATED: tl.constexpr, BLOCK_O: tl.constexpr):
    """The rows of a matrix that a block takes, and which there are; ``GATED``, gates first, then as many others.

    Both in one product: it is twice as wide, and reads its left side once.
    """
    column_o = tl.arange(0, 2 * BLOCK_O if GATED else BLOCK_O)
    output_o = block_o * BLOCK_O + column_o % BLOCK_O
    return output_o.to(tl.int64) + (column_o // BLOCK_O).to(tl.int64) * num_outputs, output_o < num_outputs


@triton.jit
def _block(pointers, inside_first, inside_second, MASK_FIRST: tl.constexpr, MASK_SECOND: tl.constexpr):
    """A block of a matrix, with zeros where a mask that is needed says so."""
    if MASK_FIRST and MASK_SECOND:
        return tl.load(pointers, mask=inside_first[:, None] & inside_second[None, :], other=0.0)
    if MASK_FIRST:
        return tl.load(pointers, mask=inside_first[:, None], other=0.0)
    if MASK_SECOND:
        return tl.load(pointers, mask=inside_second[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def _finished(sum_ro, scale_r, found_r, ELEMENT: tl.constexpr, SCALE: tl.constexpr, GATHER: tl.constexpr):
    """Sums as values of the output: scaled, zero where nothing was gathered, rounded once."""
    if SCALE:
        sum_ro *= scale_r[:, None]
    if GATHER:
        sum_ro = tl.where(found_r[:, None], sum_ro, 0.0)
    return rounded(sum_ro, ELEMENT)
