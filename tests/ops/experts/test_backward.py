"""The backward of the experts: the kernels against float64, and the promises about bits, memory and sizes."""

import pytest
import torch
from backward_cases import (
    Case,
    assert_close,
    case,
    every_activation,
    every_dtype,
    every_isa,
    needs_kernels,
    oracle,
    outputs,
    run_kernel,
    whole_numbers,
)

from moegate.ops.experts.backward import kernel_serves

OFFSETS = [4, 4, 11, 12, 29]  # of 31 rows


@needs_kernels
@every_isa
@every_dtype
@every_activation
@pytest.mark.parametrize("threads", [1, 2])
def test_against_float64(isa: str, dtype: torch.dtype, activation: int, threads: int) -> None:
    given = case(OFFSETS, 37, 19, activation, num_rows=31).to(dtype)
    assert_close(run_kernel(given, isa, threads), oracle(given))


@needs_kernels
@every_isa
@every_dtype
@pytest.mark.parametrize(
    ("ends", "hidden", "width"),
    [
        ([1], 1, 1),
        ([0, 3], 3, 1),
        ([17, 20], 17, 3),
        ([5, 40], 64, 32),
        ([129, 129, 130], 96, 70),
        ([70], 300, 270),
        ([600], 48, 33),
        ([3, 3, 5, 6, 7, 8, 9, 200], 1024, 256),  # gradients that go past the caches
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], 160, 288),
    ],
)
def test_whole_numbers_are_exact(isa: str, dtype: torch.dtype, ends: list[int], hidden: int, width: int) -> None:
    given = whole_numbers(ends, hidden, width)
    expected = oracle(given)
    for ours, theirs in zip(run_kernel(given.to(dtype), isa, 2), expected, strict=True):
        assert ours.equal(theirs.to(dtype))


@needs_kernels
@every_isa
@every_dtype
def test_what_belongs_to_nobody_is_never_read(isa: str, dtype: torch.dtype) -> None:
    given = case(OFFSETS, 24, 16, num_rows=31)
    expected = oracle(given.to(dtype))
    for tensor in given.tensors[:3]:
        tensor[29:] = float("nan")
    given.up[1], given.down[1] = float("nan"), float("nan")
    grad_rows, grad_up, grad_down = found = run_kernel(given.to(dtype), isa)
    assert_close(found, expected)
    assert not grad_rows[29:].any() and not grad_up[1].any() and not grad_down[1].any()


@needs_kernels
@every_isa
@every_dtype
@pytest.mark.parametrize("ends", [[300, 301, 301, 420], [3, 6, 7, 10]])
def test_threads_leave_the_bits_alone(isa: str, dtype: torch.dtype, ends: list[int]) -> None:
    given = case(ends, 100, 130).to(dtype)
    alone = run_kernel(given, isa, 1)
    for _ in range(3):
        assert all(a.equal(b) for a, b in zip(run_kernel(given, isa, 2), alone, strict=True))


@needs_kernels
@every_isa
@every_dtype
def test_the_gradient_of_a_row_depends_on_no_other_row(isa: str, dtype: torch.dtype) -> None:
    given = case([40, 41, 59], 70, 45).to(dtype)
    together = run_kernel(given, isa)[0]
    for row, expert in ((0, 0), (39, 0), (40, 1), (58, 2)):
        ends = (torch.arange(3) >= expert).long()
        assert run_kernel(given.with_rows(torch.tensor([row]), ends), isa)[0][0].equal(together[row])
    some = torch.arange(3, 37)
    part = run_kernel(given.with_rows(some, torch.tensor([34, 34, 34])), isa)[0]
    assert part.equal(together[3:37])


@needs_kernels
@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_values(isa: str, dtype: torch.dtype) -> None:
    """Far from zero an activation is a line or zero; neither a NaN nor an infinity comes of it."""
    far = [-3e38, -1e30, -200.0, -90.0, -80.0, -0.0, 0.0, 80.0, 90.0, 200.0, 1e15]
    pre = torch.tensor(far)[:, None].to(dtype)
    ones = torch.ones(len(far), 1, dtype=dtype)
    weight = torch.ones(1, 1, 1, dtype=dtype)
    for activation in (2, 3, 4, 5):
        given = Case(ones, ones, pre, weight, weight, torch.tensor([len(far)]), activation)
        found, expected = run_kernel(given, isa)[0], oracle(given)[0]
        tolerance = 1e-6 if dtype is torch.float32 else 5e-3
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@needs_kernels
@every_isa
@pytest.mark.parametrize("activation", [0, 2, 3, 5])
def test_nan_stays_where_it_came_from(isa: str, activation: int) -> None:
    given = case([2, 4], 8, 8, activation)
    given.pre[1] = float("nan")
    grad_rows, grad_up, grad_down = run_kernel(given, isa)
    assert grad_rows.isnan().all(dim=1).tolist() == [False, True, False, False]
    assert bool(grad_up[0].isnan().all()) and not grad_up[1].isnan().any()
    assert bool(grad_down[0].isnan().all()) and not grad_down[1].isnan().any()


@needs_kernels
@every_dtype
@pytest.mark.parametrize(
    ("ends", "hidden", "width", "num_rows"),
    [
        ([], 4, 4, 0),
        ([], 4, 4, 3),
        ([0, 0], 4, 4, 0),
        ([0, 0], 4, 4, 3),
        ([2], 0, 4, 2),
        ([2], 4, 0, 3),
        ([0], 0, 0, 0),
    ],
)
def test_sizes_of_zero(dtype: torch.dtype, ends: list[int], hidden: int, width: int, num_rows: int) -> None:
    given = case(ends, hidden, width, num_rows=num_rows).to(dtype)
    for ours, theirs in zip(run_kernel(given), oracle(given), strict=True):
        assert ours.equal(theirs.to(dtype))


@needs_kernels
@every_dtype
def test_views_are_taken_as_they_are(dtype: torch.dtype) -> None:
    given = case(OFFSETS, 12, 10, num_rows=31).to(dtype)
    expected = run_kernel(given)
    turned = [tensor.mT.contiguous().mT for tensor in given.tensors[:5]]
    ends = torch.stack([given.offsets, given.offsets], dim=1)[:, 0]
    assert not any(tensor.is_contiguous() for tensor in (*turned, ends))
    views = Case(*turned, offsets=ends, activation=0)
    assert all(a.equal(b) for a, b in zip(run_kernel(views), expected, strict=True))
    one = torch.ones((), dtype=dtype)
    expanded = Case(one.expand(31, 12), *given.tensors[1:5], offsets=given.offsets, activation=0)  # as from sum()
    assert_close(run_kernel(expanded), oracle(expanded))


@needs_kernels
@every_dtype
def test_outputs_need_no_alignment(dtype: torch.dtype) -> None:
    """Streaming stores ask for it; where a tensor begins anywhere, others serve."""
    given = case([40, 90], 64, 64).to(dtype)
    expected = run_kernel(given)
    results = [torch.empty(tensor.numel() + 1, dtype=dtype)[1:].view(tensor.shape) for tensor in expected]
    torch.ops.moegate.experts_backward_kernel(*given.tensors, 0, *results, False)
    assert all(a.equal(b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every_activation
def test_the_operator_against_float64(dtype: torch.dtype, activation: int) -> None:
    given = case(OFFSETS, 9, 7, activation, num_rows=31).to(dtype)
    found = torch.ops.moegate.experts_backward(*given.tensors, activation, True, True)
    assert [grad.dtype for grad in found] == [dtype] * 3
    assert_close(found, oracle(given))


@every_dtype
@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_what_is_needed(dtype: torch.dtype, needs: tuple[bool, bool]) -> None:
    given = case(OFFSETS, 9, 7, num_rows=31).to(dtype)
    every = torch.ops.moegate.experts_backward(*given.tensors, 0, True, True)
    found = torch.ops.moegate.experts_backward(*given.tensors, 0, *needs)
    for grad, full, needed in zip(found, every, (needs[0], needs[1], needs[1]), strict=True):
        assert grad.equal(full) if needed else grad.numel() == 0


@needs_kernels
def test_outputs_that_are_left_out() -> None:
    given = case(OFFSETS, 9, 7, num_rows=31)
    expected = run_kernel(given)
    grad_rows, grad_up, grad_down = outputs(given)
    torch.ops.moegate.experts_backward_kernel(*given.tensors, 0, grad_rows, None, None, False)
    torch.ops.moegate.experts_backward_kernel(*given.tensors, 0, None, grad_up, grad_down, False)
    assert grad_rows.equal(expected[0]) and grad_up.equal(expected[1]) and grad_down.equal(expected[2])


@pytest.mark.parametrize(
    ("dtype", "device", "isa", "serves"),
    [
        (torch.float32, "cpu", "avx512_bf16", True),
        (torch.bfloat16, "cpu", "avx512", True),
        (torch.bfloat16, "cpu", "avx2", True),
        (torch.float32, "cpu", "scalar", False),
        (torch.float32, "cpu", "", False),
        (torch.float64, "cpu", "avx512", False),
        (torch.float16, "cpu", "avx512", False),
        (torch.float32, "cuda", "avx512", False),
    ],
)
def test_what_the_kernel_serves(dtype: torch.dtype, device: str, isa: str, serves: bool) -> None:
    assert kernel_serves(dtype, device, isa) is serves
