"""What the kernel of the backward is given raw: an error that says what is wrong, never a crash."""

import random
from typing import Any

import pytest
import torch
from backward_cases import case, needs_kernels, outputs
from torch import Tensor

pytestmark = needs_kernels

NAMES = (
    "grad_out", "rows", "pre", "up", "down", "offsets", "activation", "grad_rows", "grad_up", "grad_down", "accumulate"
)  # fmt: skip


def arguments() -> dict[str, Any]:
    given = case([2, 2, 5], 6, 4, num_rows=7)
    return dict(zip(NAMES, (*given.tensors, 0, *outputs(given), False), strict=True))


def run(given: dict[str, Any]) -> None:
    torch.ops.moegate.experts_backward_kernel(*given.values())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offsets", torch.tensor([2, 1, 5]), r"offsets must not decrease .* the 7 rows, but offsets\[1\] is 1\."),
        ("offsets", torch.tensor([2, 2, 8]), r"but offsets\[2\] is 8\."),
        ("offsets", torch.tensor([-1, 2, 5]), r"but offsets\[0\] is -1\."),
        ("offsets", torch.tensor([2, 2**62, 5]), r"offsets\[1\] is 4611686018427387904"),
        ("offsets", torch.tensor([2, 5]), "offsets has 2 in dimension 0, but 3 fits"),
        ("offsets", torch.tensor([2, 2, 5], dtype=torch.int32), "offsets must be Long, got Int"),
        ("activation", 6, "activation=6 is unknown: expected 0 to 5"),
        ("activation", -1, "activation=-1 is unknown"),
        ("activation", 2, "pre has 8 in dimension 1, but 4 fits"),
        ("rows", torch.ones(7, 6, 1), "rows must have 2 dimensions, got 3"),
        ("rows", torch.ones(8, 6), "grad_out has 7 in dimension 0, but 8 fits"),
        ("rows", torch.ones(7, 6).double(), "rows must be Float or BFloat16, got Double"),
        ("grad_out", torch.ones(7, 6).bfloat16(), "grad_out must be Float, got BFloat16"),
        ("up", torch.ones(3, 8, 5), "up has 5 in dimension 2, but 6 fits"),
        ("down", torch.ones(6, 4), "down must have 3 dimensions, got 2"),
        ("grad_rows", torch.ones(6, 7).mT, "grad_rows must be a contiguous tensor on the CPU"),
        ("grad_rows", torch.ones(7, 6).bfloat16(), "grad_rows must be Float"),
        ("grad_up", torch.ones(3, 8, 6).bfloat16(), "grad_up must have the dtype of the weights or be Float"),
        ("grad_up", torch.ones(1).expand(3, 8, 6), "grad_up must be a contiguous tensor"),
        ("grad_down", torch.ones(3, 6, 5), "grad_down has 5 in dimension 2, but 4 fits"),
        ("grad_down", None, "grad_up and grad_down go together"),
    ],
)
def test_an_error_says_what_is_wrong(name: str, value: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(arguments() | {name: value})


def hostile_tensor(chance: random.Random, like: Tensor | None) -> Tensor:
    """Near what is expected, or far from it."""
    shape = [] if like is None else list(like.shape)
    if chance.random() < 0.5:
        shape = [chance.choice([0, 1, 2, 3, 6, 7]) for _ in range(chance.randrange(5))]
    dtype = chance.choice([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64])
    if chance.random() < 0.3 and dtype is torch.int64:
        return torch.randint(-(2**62), 2**62, shape)
    tensor = torch.zeros(shape, dtype=dtype)
    if chance.random() < 0.3:
        tensor = torch.zeros((), dtype=dtype).expand(shape)
    elif chance.random() < 0.3 and tensor.ndim >= 2:
        tensor = tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    return tensor


def test_hostile_arguments_never_crash() -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(3000):
        given = arguments()
        for name in chance.sample(NAMES, chance.randrange(1, 4)):
            value = given[name]
            if name == "activation":
                given[name] = chance.choice([-(2**63), -1, 0, 3, 5, 6, 2**63 - 1])
            elif name == "accumulate":
                given[name] = True
            else:
                given[name] = (
                    None if name.startswith("grad_") and chance.random() < 0.2 else hostile_tensor(chance, value)
                )
        try:
            run(given)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            assert len(str(error)) > 10
            refused += 1
    assert 1000 < refused < 3000


@pytest.mark.parametrize("name", ["grad_up", "grad_down", "grad_rows"])
def test_outputs_that_are_inputs_are_wrong_but_safe(name: str) -> None:
    given = arguments()
    given[name] = given[name.removeprefix("grad_")]
    run(given)
    assert given[name].shape == arguments()[name].shape


def test_other_devices_never_reach_the_kernel() -> None:
    given = arguments()
    for name, value in given.items():
        if isinstance(value, Tensor):
            with pytest.raises((RuntimeError, NotImplementedError)):
                run(given | {name: value.to("meta")})
    with pytest.raises((RuntimeError, NotImplementedError)):
        run(given | {name: value.to("meta") for name, value in given.items() if isinstance(value, Tensor)})
