"""The backward of the experts differentiated again, and what its registration promises."""

import pytest
import torch
from backward_cases import Case, case, every_activation
from torch import Tensor

LAYOUTS = {"plain": [2, 4, 6], "an expert without rows": [0, 3, 6], "rows without an expert": [1, 2, 4]}
every_layout = pytest.mark.parametrize("ends", LAYOUTS.values(), ids=LAYOUTS.keys())


def leaves(given: Case) -> list[Tensor]:
    return [tensor.double().requires_grad_() for tensor in given.tensors[:5]]


@every_layout
@every_activation
def test_derivatives(ends: list[int], activation: int) -> None:
    given = case(ends, 3, 2, activation, num_rows=6)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch.ops.moegate.experts_backward(*tensors, given.offsets, activation, True, True)
        return result

    assert torch.autograd.gradcheck(run, leaves(given))


@pytest.mark.parametrize("activation", [0, 2])
def test_derivatives_of_derivatives(activation: int) -> None:
    given = case([1, 1, 3], 2, 1, activation, num_rows=4)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch.ops.moegate.experts_backward(*tensors, given.offsets, activation, True, True)
        return result

    assert torch.autograd.gradgradcheck(run, leaves(given))


@pytest.mark.parametrize(
    ("needs", "dtype"),
    [((True, True), torch.float32), ((False, True), torch.bfloat16), ((True, False), torch.float64)],
)
def test_the_registration_is_sound(needs: tuple[bool, bool], dtype: torch.dtype) -> None:
    given = case([1, 1, 4], 3, 2, num_rows=6).to(dtype)
    tensors = [tensor.requires_grad_() for tensor in given.tensors[:5]]
    torch.library.opcheck(torch.ops.moegate.experts_backward.default, (*tensors, given.offsets, 0, *needs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_registration_of_the_adding_form_is_sound(dtype: torch.dtype) -> None:
    given = case([2, 2, 5], 3, 2, num_rows=6).to(dtype)
    buffers = torch.zeros_like(given.up), torch.zeros_like(given.down)
    torch.library.opcheck(torch.ops.moegate.experts_backward_into.default, (*given.tensors, 0, True, *buffers))
