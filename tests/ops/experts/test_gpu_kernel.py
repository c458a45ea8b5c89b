"""The experts on Triton: both ways that they are computed, against float64, forward, backward and into buffers."""

import importlib
from typing import Any

import backward_cases
import forward_cases
import pytest
import torch
from triton_support import only_on_triton

from moegate.ops.experts import ACTIVATIONS

pytestmark = only_on_triton
OPERATORS = torch.ops.moegate
every_activation = pytest.mark.parametrize("activation", range(len(ACTIVATIONS)))
SIZES = {
    "few rows": ([3, 3, 8], 10, 48, 32),
    "many rows": ([40, 40, 93], 95, 32, 16),
    "prime sizes": ([2, 37, 37], 38, 23, 11),
}
every_size = pytest.mark.parametrize(("ends", "num_rows", "hidden", "width"), SIZES.values(), ids=SIZES.keys())
every_way = pytest.mark.parametrize(
    ("products", "ends", "num_rows", "hidden", "width"),
    [*(pytest.param("Triton", *size, id=name) for name, size in SIZES.items()), ("PyTorch", *SIZES["many rows"])],
    indirect=["products"],
)
every_product = pytest.mark.parametrize("products", ["Triton", "PyTorch"], indirect=True)


@pytest.fixture
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose products are taken: PyTorch's run on a CPU too, in bfloat16 and with aligned sizes."""
    if request.param == "PyTorch":
        takes = importlib.import_module("moegate.ops.grouped_mm.gpu_torch").takes
        for place in ("experts", "grouped_mm"):
            operator = importlib.import_module(f"moegate.ops.{place}.gpu_operator")
            monkeypatch.setattr(operator, "uses_torch", lambda _, __, *matrices: all(map(takes, matrices)))
    return str(request.param)


@every_activation
@every_way
def test_forward(activation: int, ends: list[int], num_rows: int, hidden: int, width: int, products: str) -> None:
    given = forward_cases.case(ends, hidden, width, ACTIVATIONS[activation], num_rows=num_rows, dtype=torch.bfloat16)
    out, nothing = given.run()
    forward_cases.assert_right(given, out)
    kept, pre = given.run(keep=True)
    assert kept.equal(out) and nothing.shape == (0, pre.shape[1])
    expected = torch.from_numpy(forward_cases.oracle(given)[1])
    torch.testing.assert_close(pre.double(), expected, rtol=2e-2, atol=2e-2)
    assert not pre[ends[-1] :].any() and not out[ends[-1] :].any()


@every_activation
@every_way
def test_backward(activation: int, ends: list[int], num_rows: int, hidden: int, width: int, products: str) -> None:
    given = backward_cases.case(ends, hidden, width, activation, num_rows=num_rows).to(torch.bfloat16)
    given.rows[ends[-1] :] = float("nan")  # no gradient comes from rows without an expert
    found = OPERATORS.experts_backward(*given.tensors, activation, True, True)
    expected = backward_cases.oracle(given)
    backward_cases.assert_close(found, expected)
    buffers = [torch.ones(tensor.shape) for tensor in (given.up, given.down)]
    grad_rows = OPERATORS.experts_backward_into(*given.tensors, activation, True, *buffers)
    backward_cases.assert_close((grad_rows, *buffers), (expected[0], expected[1] + 1, expected[2] + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@every_size
def test_other_types(dtype: torch.dtype, ends: list[int], num_rows: int, hidden: int, width: int) -> None:
    given = backward_cases.case(ends, hidden, width, 0, num_rows=num_rows).to(dtype)
    given.up.mul_(hidden**-0.5)
    given.down.mul_(width**-0.5)
    out, _ = OPERATORS.experts(given.rows, given.up, given.down, given.offsets, 0, False)
    wide = forward_cases.Case(given.rows, given.up, given.down, given.offsets, "swiglu")
    expected = torch.from_numpy(forward_cases.oracle(wide)[0])
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol={torch.float32: 1e-5}.get(dtype, 1e-2))
    found = OPERATORS.experts_backward(*given.tensors, 0, True, True)
    backward_cases.assert_close(found, backward_cases.oracle(given))


@every_product
def test_weights_of_experts_without_rows_are_not_read(products: str) -> None:
    given = forward_cases.case([3, 3, 8], 48, 32, dtype=torch.bfloat16, num_rows=9)
    given.up[1] = given.down[1] = float("nan")
    assert bool(given.run()[0].isfinite().all())


@every_product
def test_expanded_gradients_and_strided_weights(products: str) -> None:
    given = backward_cases.case([3, 3, 8], 32, 16, num_rows=9).to(torch.bfloat16)
    strided = [tensor.mT.contiguous().mT for tensor in (given.rows.clone(), given.pre, given.up, given.down)]
    grad_out = torch.ones(1, 1, dtype=torch.bfloat16).expand(9, 32)
    found = OPERATORS.experts_backward(grad_out, *strided, given.offsets, 0, True, True)
    plain = OPERATORS.experts_backward(grad_out.contiguous(), *given.tensors[1:], 0, True, True)
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": torch.float32}, "one floating type"),
        ({"rows": torch.float32}, "one floating type"),
        ({"offsets": torch.int32}, "offsets must be int64"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    given = backward_cases.case([3, 3, 8], 16, 8).to(torch.bfloat16)
    names = ("grad_out", "rows", "pre", "up", "down", "offsets")
    tensors = {
        name: tensor.to(change.get(name, tensor.dtype)) for name, tensor in zip(names, given.tensors, strict=True)
    }
    with pytest.raises(RuntimeError, match=message):
        OPERATORS.experts_backward(*tensors.values(), 0, True, True)
    with pytest.raises(RuntimeError, match=message):
        OPERATORS.experts(tensors["rows"], tensors["up"], tensors["down"], tensors["offsets"], 0, False)
