"""Gradients added to buffers: sums, dtypes, and experts that got no rows."""

import pytest
import torch
from backward_cases import assert_close, case, every_isa, needs_kernels, oracle, whole_numbers

from moegate.ops.library import forced_isa

OFFSETS = [4, 4, 11, 200]
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]


@needs_kernels
@every_isa
@pytest.mark.parametrize(("dtype", "gradient_dtype"), DTYPES)
@pytest.mark.parametrize(("hidden", "width"), [(64, 32), (33, 17)])
def test_kernels_add(isa: str, dtype: torch.dtype, gradient_dtype: torch.dtype, hidden: int, width: int) -> None:
    given = whole_numbers(OFFSETS, hidden, width)
    grad_rows, grad_up, grad_down = oracle(given)
    buffers = [torch.randint(-9, 9, grad.shape).to(gradient_dtype) for grad in (grad_up, grad_down)]
    expected = [
        (buffer.double() + grad).to(gradient_dtype) for buffer, grad in zip(buffers, (grad_up, grad_down), strict=True)
    ]
    found = torch.empty_like(given.rows, dtype=dtype)
    with forced_isa(isa):
        torch.ops.moegate.experts_backward_kernel(*given.to(dtype).tensors, given.activation, found, *buffers, True)
    assert found.equal(grad_rows.to(dtype))
    assert buffers[0].equal(expected[0]) and buffers[1].equal(expected[1])


@pytest.mark.parametrize(("dtype", "gradient_dtype"), [*DTYPES, (torch.float64, torch.float64)])
def test_experts_without_rows_are_not_touched(dtype: torch.dtype, gradient_dtype: torch.dtype) -> None:
    given = case(OFFSETS, 16, 8).to(dtype)
    buffers = [torch.zeros(tensor.shape, dtype=gradient_dtype) for tensor in (given.up, given.down)]
    for buffer in buffers:
        buffer[1] = float("nan")
    for _ in range(2):
        grad_rows = torch.ops.moegate.experts_backward_into(*given.tensors, 0, True, *buffers)
    expected = oracle(given)
    twice = tuple(2 * grad for grad in expected[1:])
    assert all(bool(buffer[1].isnan().all()) for buffer in buffers)
    assert_close((grad_rows, *(buffer.nan_to_num(0.0) for buffer in buffers)), (expected[0], *twice))


@pytest.mark.parametrize("needs_rows", [True, False])
def test_the_gradient_of_the_rows_is_optional(needs_rows: bool) -> None:
    given = case(OFFSETS, 16, 8)
    buffers = [torch.zeros_like(tensor) for tensor in (given.up, given.down)]
    grad_rows = torch.ops.moegate.experts_backward_into(*given.tensors, 0, needs_rows, *buffers)
    assert grad_rows.shape == (given.rows.shape if needs_rows else (0,))
    expected = torch.ops.moegate.experts_backward(*given.tensors, 0, needs_rows, True)
    assert grad_rows.equal(expected[0])
    assert buffers[0].equal(expected[1]) and buffers[1].equal(expected[2])
