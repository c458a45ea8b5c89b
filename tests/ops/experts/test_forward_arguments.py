"""What the forward of the experts is given: an error that says what is wrong, never a crash."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from forward_cases import Case, case, needs_kernels
from torch import Tensor
from triton_support import not_on_triton

from moegate.ops.experts import experts
from moegate.ops.experts.forward import EXPERTS, experts_reference

NAMES = ("rows", "up", "down", "offsets", "activation", "keep")
BAD_OFFSETS = [
    ([2, 1, 5], r"offsets\[1\] is 1 after 2"),
    ([2, 2, 8], r"offsets\[2\] is 8"),
    ([-1, 2, 5], r"\[0\] is -1"),
    ([2, 2**62, 5], r"offsets\[1\] is 4611686018427387904"),
]


def arguments() -> dict[str, Any]:
    given = case([2, 2, 5], 6, 4, num_rows=7)
    return dict(zip(NAMES, (given.rows, given.up, given.down, given.offsets, 0, True), strict=True))


@pytest.mark.parametrize(("ends", "message"), BAD_OFFSETS)
@pytest.mark.parametrize(
    "run",
    [
        pytest.param(EXPERTS, marks=not_on_triton("the kernels don't wait for the offsets, and cut them to the rows")),
        experts_reference,
    ],
)
def test_bad_offsets(ends: list[int], message: str, run: Any) -> None:
    with pytest.raises(RuntimeError, match=f"offsets must grow from 0 to at most 7 rows, but .*{message}"):
        run(*(arguments() | {"offsets": torch.tensor(ends)}).values())


@needs_kernels
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offsets", torch.tensor([2, 5]), "offsets must hold one end for each of 3 experts, got 2"),
        ("offsets", torch.tensor([2, 2, 5], dtype=torch.int32), "offsets must be Long, got Int"),
        ("offsets", torch.tensor([[2, 2, 5]]), "offsets must have 1 dimensions, got 2"),
        ("activation", 6, "activation must be 0 to 5, got 6"),
        ("activation", -(2**40), "activation must be 0 to 5"),
        ("activation", 2, r"up must be \[3, 4, 6\] to go with down, got \[3, 8, 6\]"),
        ("rows", torch.ones(7, 6, 1), "rows must have 2 dimensions, got 3"),
        ("rows", torch.ones(7, 6).half(), "rows must be Float or BFloat16, got Half"),
        ("rows", torch.ones(7, 5), r"down must be \[3, 5, 4\] for rows of 5, got \[3, 6, 4\]"),
        ("up", torch.ones(3, 8, 6).bfloat16(), "up must be Float, got BFloat16"),
        ("up", torch.ones(2, 8, 6), r"up must be \[3, 8, 6\]"),
        ("down", torch.ones(3, 6, 4).double(), "down must be Float, got Double"),
        ("down", torch.ones(6, 4), "down must have 3 dimensions, got 2"),
    ],
)
def test_an_error_of_the_kernel_says_what_is_wrong(name: str, value: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        EXPERTS(*(arguments() | {name: value}).values())


def hostile_tensor(chance: random.Random, like: Tensor) -> Tensor:
    """Near what is expected, or far from it."""
    shape = list(like.shape)
    if chance.random() < 0.5:
        shape = [chance.choice([0, 1, 2, 3, 6, 7]) for _ in range(chance.randrange(5))]
    dtype = chance.choice([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64])
    if dtype is torch.int64:
        return torch.randint(*chance.choice([(-(2**62), 2**62), (-2, 8), (0, 8)]), shape)
    if chance.random() < 0.3:
        return torch.zeros((), dtype=dtype).expand(shape)
    return torch.zeros(shape[::-1], dtype=dtype).permute(tuple(reversed(range(len(shape)))))


@needs_kernels
def test_hostile_arguments_never_crash() -> None:
    chance = random.Random(0)
    refused = served = 0
    for _ in range(4000):
        given = arguments()
        for name in chance.sample(NAMES[:4], chance.randrange(1, 4)):
            given[name] = hostile_tensor(chance, given[name])
        given["activation"] = chance.choice([*range(6), -1, 6, 2**62])
        try:
            out, _ = EXPERTS(*given.values())
        except RuntimeError as error:
            assert str(error)
            refused += 1
        else:
            assert out.shape == given["rows"].shape
            served += 1
    assert refused > 1000 and served > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "swiglue"}, "activation='swiglue' is none: choose swiglu, geglu, gelu"),
        ({"activation": "gelu"}, r"for gelu and this down, rows must be \[R, 6\] and up \[3, 4, 6\]"),
        ({"rows": torch.ones(7, 5)}, r"rows \(7, 5\), up \(3, 8, 6\) and down \(3, 6, 4\) do not fit"),
        ({"rows": torch.ones(6)}, r"expected \[R, D\], \[E, 2F or F, D\], \[E, D, F\] and \[E\]"),
        ({"offsets": torch.tensor([5])}, r"offsets \(1,\) of torch.int64 must be one int64 end for each of 3 experts"),
        ({"offsets": torch.tensor([2, 2, 5], dtype=torch.int32)}, "of torch.int32 must be one int64 end"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_error_says_what_fits(change: dict[str, Any], message: str, dtype: torch.dtype) -> None:
    given: Case = replace(case([2, 2, 5], 6, 4, num_rows=7, dtype=dtype), **change)
    with pytest.raises(ValueError, match=message):
        experts(given.rows, given.up, given.down, given.offsets, given.activation)
