"""Matrix products of sorted rows in Triton: one program, one tile of one group's product.

How many tiles a group has is known on the device alone, so as many programs are launched as there can be tiles; each
finds its group in the running sum of tiles, and those beyond the last have nothing to do.
"""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import added_product, rounded


@triton.jit
def group_of_tile(offsets_ptr, tile, num_groups, num_rows, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """The group of a tile of ``BLOCK_R`` rows, its first row and the end of the group's rows; -1 for no group.

    The rows behind the last group are one more group, ``num_groups``, which has no matrix.
    """
    group_e = tl.arange(0, BLOCK_E)
    here_e = group_e <= num_groups
    end_e = tl.load(offsets_ptr + group_e, mask=group_e < num_groups, other=num_rows)
    start_e = tl.load(offsets_ptr + group_e - 1, mask=here_e & (group_e > 0), other=0)
    tiles_e = tl.where(here_e, (end_e - start_e + (BLOCK_R - 1)) // BLOCK_R, 0)
    last_e = tl.cumsum(tiles_e, axis=0)
    mine_e = here_e & (last_e > tile) & (last_e - tiles_e <= tile)
    group = tl.max(tl.where(mine_e, group_e, -1), axis=0)
    first = tl.sum(tl.where(mine_e, start_e + (tile - (last_e - tiles_e)) * BLOCK_R, 0), axis=0)
    end = tl.sum(tl.where(mine_e, end_e, 0), axis=0)
    return group, first, end


@triton.jit
def grouped_mm_kernel(
    rows_ptr, weight_ptr, offsets_ptr, out_ptr, num_groups, num_rows, num_inputs, num_outputs,
    stride_r, stride_ri, stride_e, stride_o, stride_i,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """``out[r] = weight[e] @ rows[r]`` for ``BLOCK_R`` rows of one group and ``BLOCK_O`` outputs; 0 without a group."""
    group, first, end = group_of_tile(offsets_ptr, tl.program_id(0), num_groups, num_rows, BLOCK_R, BLOCK_E)
    if group < 0:
        return
    row_r = first + tl.arange(0, BLOCK_R)
    output_o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_r, inside_o = row_r < end, output_o < num_outputs
    input_i = tl.arange(0, BLOCK_I).to(tl.int64)
    rows_ri = rows_ptr + row_r.to(tl.int64)[:, None] * stride_r + input_i[None, :] * stride_ri
    weight_io = weight_ptr + group.to(tl.int64) * stride_e + output_o.to(tl.int64)[None, :] * stride_o
    weight_io += input_i[:, None] * stride_i
    sum_ro = tl.full((BLOCK_R, BLOCK_O), 0.0, tl.float32)
    for start in range(0, tl.where(group < num_groups, num_inputs, 0), BLOCK_I):
        left_i = (start + input_i) < num_inputs
        left_ri = tl.load(rows_ri, mask=inside_r[:, None] & left_i[None, :], other=0.0)
        right_io = tl.load(weight_io, mask=left_i[:, None] & inside_o[None, :], other=0.0)
        sum_ro = added_product(left_ri, right_io, sum_ro)
        rows_ri += BLOCK_I * stride_ri
        weight_io += BLOCK_I * stride_i
    out_ro = out_ptr + row_r.to(tl.int64)[:, None] * num_outputs + output_o[None, :]
    tl.store(out_ro, rounded(sum_ro, out_ptr.dtype.element_ty), mask=inside_r[:, None] & inside_o[None, :])


@triton.jit
def grouped_outer_kernel(
    left_ptr, right_ptr, offsets_ptr, out_ptr, num_outputs, num_inputs,
    stride_lr, stride_lo, stride_rr, stride_ri,
    ADD: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """``out[e] = Σ_r left[r] ⊗ right[r]`` over the rows of one group, for one tile; added to what is there if ``ADD``."""
    group = tl.program_id(0)
    tiles_i = tl.cdiv(num_inputs, BLOCK_I)
    output_o = tl.program_id(1) // tiles_i * BLOCK_O + tl.arange(0, BLOCK_O)
    input_i = tl.program_id(1) % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)
    inside_o, inside_i = output_o < num_outputs, input_i < num_inputs
    end = tl.load(offsets_ptr + group)
    begin = tl.load(offsets_ptr + group - 1, mask=group > 0, other=0)
    if ADD and begin == end:
        return
    row_r = begin + tl.arange(0, BLOCK_R).to(tl.int64)
    sum_oi = tl.full((BLOCK_O, BLOCK_I), 0.0, tl.float32)
    for start in range(begin, end, BLOCK_R):
        row_r = start + tl.arange(0, BLOCK_R).to(tl.int64)
        here_r = row_r < end
        left_or = left_ptr + row_r[None, :] * stride_lr + output_o.to(tl.int64)[:, None] * stride_lo
        right_ri = right_ptr + row_r[:, None] * stride_rr + input_i.to(tl.int64)[None, :] * stride_ri
        sum_oi = added_product(
            tl.load(left_or, mask=inside_o[:, None] & here_r[None, :], other=0.0),
            tl.load(right_ri, mask=here_r[:, None] & inside_i[None, :], other=0.0),
            sum_oi,
        )
    out_oi = out_ptr + (group.to(tl.int64) * num_outputs + output_o[:, None]) * num_inputs + input_i[None, :]
    inside_oi = inside_o[:, None] & inside_i[None, :]
    if ADD:
        sum_oi += tl.load(out_oi, mask=inside_oi, other=0.0).to(tl.float32)
    tl.store(out_oi, rounded(sum_oi, out_ptr.dtype.element_ty), mask=inside_oi)
