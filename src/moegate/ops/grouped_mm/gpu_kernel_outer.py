"""The gradient of the weights of a grouped product in Triton: a sum over the rows of each group."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import added_product, rounded


@triton.jit
def grouped_outer_kernel(
    left_ptr, right_ptr, offsets_ptr, slot_ptr, out_ptr,
    num_rows, num_outputs, num_inputs, num_slots,
    stride_lr, stride_lo, stride_rr, stride_ri,
    GATHER_LEFT: tl.constexpr, GATHER_RIGHT: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    SLOTS_OF_ROW: tl.constexpr, EVEN_O: tl.constexpr, EVEN_I: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """``out[e] = Σ_r left[r] ⊗ right[r]`` over the rows of one group, for one block; added to what is there if ``ADD``.

    A gathered side reads ``side[slot[r] // SLOTS_OF_ROW]``, or zeros where the slot is none of ``num_slots``. The
    rows are added in their order, so the same arguments give the same bits. A group without rows gets zeros, or with
    ``ADD`` nothing. Offsets are cut to the rows.
    """
    blocks_i = tl.cdiv(num_inputs, BLOCK_I)
    blocks = tl.cdiv(num_outputs, BLOCK_O) * blocks_i
    group = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    end = tl.minimum(tl.maximum(tl.load(offsets_ptr + group), 0), num_rows)
    begin = tl.minimum(tl.maximum(tl.load(offsets_ptr + group - 1, mask=group > 0, other=0), 0), num_rows)
    if ADD and begin >= end:
        return
    output_o = block // blocks_i * BLOCK_O + tl.arange(0, BLOCK_O)
    input_i = block % blocks_i * BLOCK_I + tl.arange(0, BLOCK_I)
    inside_o, inside_i = output_o < num_outputs, input_i < num_inputs
    left_1o = left_ptr + output_o.to(tl.int64)[None, :] * stride_lo
    right_1i = right_ptr + input_i.to(tl.int64)[None, :] * stride_ri
    row_r = tl.arange(0, BLOCK_R)
    sum_oi = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    gathered: tl.constexpr = GATHER_LEFT or GATHER_RIGHT
    # The slots of a step are read one step ahead, so that nothing waits for them.
    slot_r = _slots(slot_ptr, begin + row_r, end, gathered)
    for start in range(begin, end, BLOCK_R):
        left_r, right_r, here_r = start + row_r, start + row_r, start + row_r < end
        if gathered:
            here_r = (slot_r >= 0) & (slot_r < num_slots)
            if GATHER_LEFT:
                left_r = slot_r // SLOTS_OF_ROW
            else:
                right_r = slot_r // SLOTS_OF_ROW
            slot_r = _slots(slot_ptr, start + BLOCK_R + row_r, end, gathered)
        left_ro = _rows(left_1o + left_r[:, None] * stride_lr, here_r, inside_o, EVEN_O)
        right_ri = _rows(right_1i + right_r[:, None] * stride_rr, here_r, inside_i, EVEN_I)
        sum_oi = added_product(tl.trans(left_ro), right_ri, sum_oi, PRECISION)
    out_oi = out_ptr + (group.to(tl.int64) * num_outputs + output_o[:, None]) * num_inputs + input_i[None, :]
    inside_oi = inside_o[:, None] & inside_i[None, :]
    if ADD:
        sum_oi += tl.load(out_oi, mask=inside_oi, other=0.0).to(tl.float32)
    tl.store(out_oi, rounded(sum_oi, out_ptr.dtype.element_ty), mask=inside_oi)


@triton.jit
def _slots(slot_ptr, row_r, end, GATHERED: tl.constexpr):
    """The slots of rows; -1 behind the group."""
    if GATHERED:
        return tl.load(slot_ptr + row_r, mask=row_r < end, other=-1).to(tl.int64)
    return row_r


@triton.jit
def _rows(pointers, here_r, inside, EVEN: tl.constexpr):
    """Rows of one side, with zeros behind the group and behind the row."""
    if EVEN:
        return tl.load(pointers, mask=here_r[:, None], other=0.0)
    return tl.load(pointers, mask=here_r[:, None] & inside[None, :], other=0.0)
