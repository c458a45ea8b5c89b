"""Grouped products: values, derivatives, and what the registration promises to the compiler."""

from typing import Any

import pytest
import torch
from torch import Tensor
from triton_support import not_on_triton

from moegate.ops import grouped_mm, grouped_outer

LAYOUTS = {
    "even": [2, 4, 6],
    "empty groups": [0, 3, 3],
    "tail without a group": [1, 2, 4],
    "none": [0, 0, 0],
    "all in one": [0, 6, 6],
}
every_layout = pytest.mark.parametrize("ends", LAYOUTS.values(), ids=LAYOUTS.keys())


def inputs(ends: list[int], dtype: torch.dtype = torch.float64, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.randn(6, 3, dtype=dtype, requires_grad=grad)
    weight = torch.randn(3, 4, 3, dtype=dtype, requires_grad=grad)
    return rows, weight, torch.tensor(ends)


def group_of(row: int, ends: list[int]) -> int | None:
    return next((group for group, end in enumerate(ends) if row < end), None)


@every_layout
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_a_loop_over_rows(ends: list[int], dtype: torch.dtype) -> None:
    rows, weight, offsets = inputs(ends, dtype, grad=False)
    out = grouped_mm(rows, weight, offsets)
    assert out.dtype == dtype
    for row in range(6):
        group = group_of(row, ends)
        expected = torch.zeros(4, dtype=dtype) if group is None else (weight[group].double() @ rows[row].double())
        torch.testing.assert_close(out[row], expected.to(dtype))


@every_layout
def test_outer_against_a_loop_over_rows(ends: list[int]) -> None:
    left, right, offsets = torch.randn(6, 4), torch.randn(6, 3), torch.tensor(ends)
    expected = torch.zeros(3, 4, 3)
    for row in range(6):
        if (group := group_of(row, ends)) is not None:
            expected[group] += torch.outer(left[row], right[row])
    torch.testing.assert_close(grouped_outer(left, right, offsets), expected)


@every_layout
def test_derivatives(ends: list[int]) -> None:
    rows, weight, offsets = inputs(ends)
    assert torch.autograd.gradcheck(lambda r, w: grouped_mm(r, w, offsets), (rows, weight))
    assert torch.autograd.gradgradcheck(lambda r, w: grouped_mm(r, w, offsets), (rows, weight))
    left = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: grouped_outer(a, b, offsets), (left, rows))
    assert torch.autograd.gradgradcheck(lambda a, b: grouped_outer(a, b, offsets), (left, rows))


@every_layout
def test_the_registration_is_sound(ends: list[int]) -> None:
    rows, weight, offsets = inputs(ends)
    left = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    for arguments, operator in (
        ((rows, weight, offsets), torch.ops.moegate.grouped_mm.default),
        ((left, rows, offsets), torch.ops.moegate.grouped_outer.default),
    ):
        torch.library.opcheck(operator, arguments)


def test_views_are_taken_as_they_are() -> None:
    rows, weight, offsets = inputs([2, 4, 6], grad=False)
    expected = grouped_mm(rows, weight, offsets)
    strided = grouped_mm(rows.mT.contiguous().mT, weight.mT.contiguous().mT, offsets)
    torch.testing.assert_close(strided, expected)
    rows.requires_grad_()
    (grad,) = torch.autograd.grad(grouped_mm(rows, weight, offsets).sum(), rows)  # an expanded gradient
    torch.testing.assert_close(grad, grouped_mm(torch.ones(6, 4, dtype=torch.float64), weight.mT, offsets))


@pytest.mark.parametrize(("rows", "inner", "outer"), [(0, 3, 4), (5, 0, 4), (5, 3, 0)])
def test_sizes_of_zero(rows: int, inner: int, outer: int) -> None:
    offsets = torch.tensor([0, rows])
    out = grouped_mm(torch.ones(rows, inner), torch.ones(2, outer, inner), offsets)
    assert out.shape == (rows, outer) and not out.any()


def test_no_gradient_comes_from_rows_without_a_group() -> None:
    rows, weight, offsets = inputs([1, 2, 4])
    grads = torch.autograd.grad(grouped_mm(rows, weight, offsets).sum(), (rows, weight))
    assert not grads[0][4:].any() and bool(grads[0][:4].any())
    broken = rows.detach().clone()
    broken[4:] = float("nan")
    (grad,) = torch.autograd.grad(grouped_mm(broken, weight, offsets).sum(), weight)
    assert grad.equal(grads[1])


@pytest.mark.parametrize(
    ("rows", "weight", "offsets", "message"),
    [
        (torch.ones(6, 2), torch.ones(3, 4, 3), torch.tensor([2, 4, 6]), r"rows \(6, 2\) and weight \(3, 4, 3\)"),
        (torch.ones(6), torch.ones(3, 4, 3), torch.tensor([2, 4, 6]), "do not fit"),
        (torch.ones(6, 3), torch.ones(3, 4, 3), torch.tensor([2, 6]), "one end for each of 3 groups"),
        (torch.ones(6, 3).half(), torch.ones(3, 4, 3), torch.tensor([2, 4, 6]), "convert one of them"),
    ],
)
def test_what_does_not_fit(rows: Tensor, weight: Tensor, offsets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grouped_mm(rows, weight, offsets)


@not_on_triton("the kernels don't wait for the offsets, and cut them to the rows")
@pytest.mark.parametrize("ends", [[2, 1, 6], [-1, 4, 6], [2, 4, 7], [2, 4, 2**62]])
def test_offsets_that_are_none(ends: list[int]) -> None:
    with pytest.raises(RuntimeError, match="offsets must grow from 0 to at most 6 rows"):
        grouped_mm(torch.ones(6, 3), torch.ones(3, 4, 3), torch.tensor(ends))
    with pytest.raises(RuntimeError, match="offsets must grow from 0 to at most 6 rows"):
        grouped_outer(torch.ones(6, 3), torch.ones(6, 2), torch.tensor(ends))


@pytest.mark.parametrize("offsets", [torch.tensor(6), torch.tensor([[6]]), torch.tensor([6], dtype=torch.int32)])
def test_offsets_of_another_shape_or_type(offsets: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"must be \[E\] of int64"):
        grouped_outer(torch.ones(6, 3), torch.ones(6, 2), offsets)


@every_layout
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # PyTorch's own, when forward mode is loaded
def test_function_transforms(ends: list[int]) -> None:
    """A tangent is not lost; nor is the group of a row where each sample of a vmap has groups of its own."""
    rows, weight, offsets = inputs(ends)
    left = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    for function, given in ((grouped_mm, (rows, weight)), (grouped_outer, (left, rows))):
        gradients = torch.autograd.grad(function(*given, offsets).square().sum(), given)
        primals = tuple(values.detach() for values in given)
        tangents = tuple(torch.randn_like(values) for values in primals)
        along = sum((gradient * tangent).sum() for gradient, tangent in zip(gradients, tangents, strict=True))

        def loss(*values: Tensor, at: Tensor = offsets, function: Any = function) -> Tensor:
            return function(*values, at).square().sum()

        torch.testing.assert_close(torch.func.jvp(loss, primals, tangents)[1], along)
        several = torch.stack([offsets, torch.tensor([1, 1, 5])])
        mapped = torch.vmap(lambda at, loss=loss, primals=primals: torch.func.grad(loss, (0, 1))(*primals, at=at))
        for ours, expected in zip(mapped(several), gradients, strict=True):
            torch.testing.assert_close(ours[0], expected)


def test_what_does_not_fit_under_a_transform() -> None:
    rows, weight = torch.ones(6, 3), torch.ones(3, 4, 3)
    with pytest.raises(RuntimeError, match="offsets must grow from 0 to at most 6 rows"):
        torch.func.grad(lambda r: grouped_mm(r, weight, torch.tensor([2, 1, 6])).sum())(rows)
    with pytest.raises(RuntimeError, match=r"must be \[E\] of int64"):
        torch.func.grad(lambda r: grouped_outer(r, r, torch.tensor([6], dtype=torch.int32)).sum())(rows)
