"""The function `experts`: every type, autograd and the compiler."""

import pytest
import torch
import torch._dynamo
from forward_cases import Case, assert_right, case, every_activation, every_dtype
from torch import Tensor

from moegate.ops.experts import ACTIVATIONS, GATED, PLAIN, experts
from moegate.ops.experts.forward import EXPERTS, experts_reference


def run(given: Case) -> Tensor:
    return experts(given.rows, given.up, given.down, given.offsets, given.activation)


def composed(given: Case) -> Tensor:
    """One expert after the other, in plain PyTorch."""
    parts, start = [], 0
    for expert, end in enumerate(given.offsets.tolist()):
        pre = given.rows[start:end] @ given.up[expert].T
        if given.activation in GATED:
            gate, factor = pre.chunk(2, dim=-1)
            inner = GATED[given.activation](gate) * factor
        else:
            inner = PLAIN[given.activation](pre)
        parts.append(inner @ given.down[expert].T)
        start = end
    return torch.cat([*parts, given.rows.new_zeros(given.rows.shape[0] - start, given.rows.shape[1])])


@every_activation
@every_dtype
def test_against_float64(activation: str, dtype: torch.dtype) -> None:
    given = case([4, 4, 30], 33, 17, activation, num_rows=32, dtype=dtype)
    assert_right(given, run(given))


@every_activation
@every_dtype
def test_the_reference_against_float64(activation: str, dtype: torch.dtype) -> None:
    given = case([4, 4, 30], 33, 17, activation, num_rows=32, dtype=dtype)
    index = ACTIVATIONS.index(activation)
    out, pre = experts_reference(given.rows, given.up, given.down, given.offsets, index, True)
    assert pre.shape == (32, given.up.shape[1])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(out, run(given), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    given = case([4, 4, 30], 33, 17, num_rows=32, dtype=dtype)
    torch.testing.assert_close(run(given), composed(given))


@pytest.mark.parametrize(("rows", "weights"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_weights_are_converted_to_the_type_of_the_rows(rows: torch.dtype, weights: torch.dtype) -> None:
    given = case([4, 9], 16, 8, dtype=weights)
    mixed = Case(given.rows.to(rows), given.up, given.down, given.offsets, "swiglu")
    same = Case(given.rows.to(rows), given.up.to(rows), given.down.to(rows), given.offsets, "swiglu")
    assert run(mixed).dtype is rows and run(mixed).equal(run(same))


@every_activation
def test_gradients_are_those_of_plain_pytorch(activation: str) -> None:
    given = case([4, 4, 30], 12, 7, activation, num_rows=32)
    leaves = [tensor.requires_grad_() for tensor in (given.rows, given.up, given.down)]
    grad = torch.randn(32, 12)
    found = torch.autograd.grad(run(given), leaves, grad)
    for ours, theirs in zip(found, torch.autograd.grad(composed(given), leaves, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_graph_where_none_is_asked_for() -> None:
    given = case([4, 9], 16, 8)
    assert run(given).grad_fn is None
    given.up.requires_grad_()
    with torch.no_grad():
        assert run(given).grad_fn is None
    assert run(given).grad_fn is not None


@every_dtype
@pytest.mark.parametrize("keep", [False, True])
def test_the_registration(dtype: torch.dtype, keep: bool) -> None:
    given = case([2, 2, 5], 6, 4, num_rows=7, dtype=dtype)
    torch.library.opcheck(EXPERTS, (given.rows, given.up, given.down, given.offsets, 0, keep))
    if keep:
        leaves = [tensor.requires_grad_() for tensor in (given.rows, given.up, given.down)]
        torch.library.opcheck(EXPERTS, (*leaves, given.offsets, 0, keep))


class Module(torch.nn.Module):
    def forward(self, rows: Tensor, up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
        return experts(rows * 1.0, up, down, offsets)


@pytest.mark.usefixtures("compiler")
@every_dtype
def test_one_graph_and_the_same_bits(dtype: torch.dtype) -> None:
    given = case([2, 2, 5], 6, 4, num_rows=7, dtype=dtype)
    tensors = (given.rows, given.up, given.down, given.offsets)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager", dynamic=True)
    assert compiled(*tensors).equal(Module()(*tensors))
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    expected = torch.autograd.grad(Module()(*leaves, given.offsets).sum(), leaves)
    for ours, theirs in zip(torch.autograd.grad(compiled(*leaves, given.offsets).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("compiler")
def test_export() -> None:
    given = case([2, 2, 5], 6, 4, num_rows=7)
    tensors = (given.rows, given.up, given.down, given.offsets)
    exported = torch.export.export(Module(), tensors).module()
    assert exported(*tensors).equal(Module()(*tensors))
