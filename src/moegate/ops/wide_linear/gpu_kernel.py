"""Products of bfloat16 with float32 results in Triton, and their gradients."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import added_product, rounded


@triton.jit
def few_tokens_kernel(
    hidden_ptr, weight_ptr, out_ptr, num_outputs, hidden_size, stride_t, stride_td, stride_e, stride_d,
    BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``BLOCK_E`` outputs of one token; the rows of the matrix are read in long pieces."""
    output_e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    token = tl.program_id(1).to(tl.int64)
    sum_e = tl.zeros((BLOCK_E,), tl.float32)
    for start in range(0, hidden_size, BLOCK_D):
        column_d = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        inside_ed = (output_e < num_outputs)[:, None] & (column_d < hidden_size)[None, :]
        place_ed = output_e.to(tl.int64)[:, None] * stride_e + column_d[None, :] * stride_d
        row_ed = tl.load(weight_ptr + place_ed, mask=inside_ed, other=0.0).to(tl.float32)
        place_d = hidden_ptr + token * stride_t + column_d * stride_td
        x_d = tl.load(place_d, mask=column_d < hidden_size, other=0.0).to(tl.float32)
        sum_e += tl.sum(row_ed * x_d[None, :], axis=1)
    tl.store(out_ptr + token * num_outputs + output_e, sum_e, mask=output_e < num_outputs)


@triton.jit
def many_tokens_kernel(
    hidden_ptr, weight_ptr, out_ptr, num_tokens, num_outputs, hidden_size, stride_t, stride_td, stride_e, stride_d,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``BLOCK_E`` outputs of ``BLOCK_T`` tokens."""
    token_t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    output_e = (tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)).to(tl.int64)
    column_d = tl.arange(0, BLOCK_D).to(tl.int64)
    inside_t1, inside_1e = (token_t < num_tokens)[:, None], (output_e < num_outputs)[None, :]
    hidden_td = hidden_ptr + token_t[:, None] * stride_t + column_d[None, :] * stride_td
    weight_de = weight_ptr + output_e[None, :] * stride_e + column_d[:, None] * stride_d
    sum_te = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for start in range(0, hidden_size, BLOCK_D):
        left_d = start + tl.arange(0, BLOCK_D) < hidden_size
        left_td = tl.load(hidden_td, mask=inside_t1 & left_d[None, :], other=0.0)
        right_de = tl.load(weight_de, mask=left_d[:, None] & inside_1e, other=0.0)
        sum_te = added_product(left_td, right_de, sum_te, "ieee")
        hidden_td += BLOCK_D * stride_td
        weight_de += BLOCK_D * stride_d
    out_te = out_ptr + token_t[:, None] * num_outputs + output_e[None, :]
    tl.store(out_te, sum_te, mask=inside_t1 & inside_1e)


@triton.jit
def _parted(x):
    """Three values of bfloat16 whose sum is a float32; an infinite one is the first of them."""
    first = rounded(x, tl.bfloat16)
    finite = tl.abs(x) < float("inf")
    rest = tl.where(finite, x - first.to(tl.float32), 0.0)
    second = rounded(rest, tl.bfloat16)
    return first, second, rounded(rest - second.to(tl.float32), tl.bfloat16)


@triton.jit
def hidden_gradient_kernel(
    grad_ptr, weight_ptr, out_ptr, num_tokens, num_outputs, hidden_size, stride_t, stride_te, stride_e, stride_d,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``out[t] = Σ_e grad[t, e] · weight[e]``, for ``BLOCK_D`` columns of ``BLOCK_T`` tokens."""
    token_t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    column_d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    inside_t1, inside_1d = (token_t < num_tokens)[:, None], (column_d < hidden_size)[None, :]
    sum_td = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for start in range(0, num_outputs, BLOCK_E):
        output_e = (start + tl.arange(0, BLOCK_E)).to(tl.int64)
        inside_e = output_e < num_outputs
        grad_te = grad_ptr + token_t[:, None] * stride_t + output_e[None, :] * stride_te
        first_te, second_te, third_te = _parted(tl.load(grad_te, mask=inside_t1 & inside_e[None, :], other=0.0))
        weight_ed = weight_ptr + output_e[:, None] * stride_e + column_d[None, :] * stride_d
        row_ed = tl.load(weight_ed, mask=inside_e[:, None] & inside_1d, other=0.0)
        sum_td = added_product(third_te, row_ed, sum_td, "ieee")
        sum_td = added_product(second_te, row_ed, sum_td, "ieee")
        sum_td = added_product(first_te, row_ed, sum_td, "ieee")
    out_td = out_ptr + token_t[:, None] * hidden_size + column_d[None, :]
    tl.store(out_td, rounded(sum_td, out_ptr.dtype.element_ty), mask=inside_t1 & inside_1d)


@triton.jit
def weight_gradient_kernel(
    grad_ptr, hidden_ptr, parts_ptr, num_tokens, num_outputs, hidden_size, tokens_of_part,
    stride_t, stride_te, stride_ht, stride_hd,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``parts[p, e] = Σ_t grad[t, e] · hidden[t]`` over the tokens of one part."""
    part = tl.program_id(2)
    output_e = (tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)).to(tl.int64)
    column_d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    inside_e1, inside_1d = (output_e < num_outputs)[:, None], (column_d < hidden_size)[None, :]
    sum_ed = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    end = tl.minimum((part + 1) * tokens_of_part, num_tokens)
    for start in range(part * tokens_of_part, end, BLOCK_T):
        token_t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        inside_t = token_t < end
        grad_et = grad_ptr + token_t[None, :] * stride_t + output_e[:, None] * stride_te
        first_et, second_et, third_et = _parted(tl.load(grad_et, mask=inside_e1 & inside_t[None, :], other=0.0))
        hidden_td = hidden_ptr + token_t[:, None] * stride_ht + column_d[None, :] * stride_hd
        row_td = tl.load(hidden_td, mask=inside_t[:, None] & inside_1d, other=0.0)
        sum_ed = added_product(third_et, row_td, sum_ed, "ieee")
        sum_ed = added_product(second_et, row_td, sum_ed, "ieee")
        sum_ed = added_product(first_et, row_td, sum_ed, "ieee")
    place_ed = (part.to(tl.int64) * num_outputs + output_e[:, None]) * hidden_size + column_d[None, :]
    tl.store(parts_ptr + place_ed, sum_ed, mask=inside_e1 & inside_1d)
