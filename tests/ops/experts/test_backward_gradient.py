"""The gradient of the experts: returned by autograd, differentiated twice, or added to buffers."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch._dynamo
from backward_cases import ACTIVATIONS, Case, assert_close, case, every_activation, every_dtype, oracle
from torch import Tensor

from moegate.ops import grouped_mm
from moegate.ops.experts.gradient import experts_adding_gradients

OFFSETS = [4, 4, 11, 29]  # of 31 rows


def prepared(activation: int, dtype: torch.dtype = torch.float32) -> Case:
    """A case whose `pre` is what the weights make of the rows."""
    given = case(OFFSETS, 12, 8, activation, num_rows=31).to(dtype)
    pre = torch.zeros(given.pre.shape, dtype=dtype)
    start = 0
    for expert, end in enumerate(OFFSETS):
        pre[start:end] = (given.rows[start:end].double() @ given.up[expert].double().T).to(dtype)
        start = end
    return Case(given.grad_out, given.rows, pre, given.up, given.down, given.offsets, activation)


def run(rows: Tensor, up: Tensor, down: Tensor, offsets: Tensor, activation: int) -> Tensor:
    out: Tensor = torch.ops.moegate.experts(rows, up, down, offsets, activation, True)[0]
    return out


@every_activation
@every_dtype
def test_against_float64(activation: int, dtype: torch.dtype) -> None:
    given = prepared(activation, dtype)
    leaves = [tensor.clone().requires_grad_() for tensor in (given.rows, given.up, given.down)]
    found = torch.autograd.grad(run(*leaves, given.offsets, activation), leaves, given.grad_out)
    assert_close(found, oracle(given))


@pytest.mark.parametrize("wanted", range(3))
def test_one_gradient_alone(wanted: int) -> None:
    given = prepared(0)
    leaves = [given.rows, given.up, given.down]
    leaves[wanted].requires_grad_()
    (found,) = torch.autograd.grad(run(*leaves, given.offsets, 0), leaves[wanted], given.grad_out)
    assert found.shape == leaves[wanted].shape
    torch.testing.assert_close(found.double(), oracle(given)[wanted], rtol=1e-5, atol=1e-5)


def composed(rows: Tensor, up: Tensor, down: Tensor, offsets: Tensor, activation: int) -> Tensor:
    gated, function = ACTIVATIONS[activation]
    pre = grouped_mm(rows, up, offsets)
    gate, factor = pre.chunk(2, dim=-1) if gated else (pre, torch.ones(()))
    return grouped_mm(function(gate) * factor, down, offsets)


def penalty(network: Callable[..., Tensor], given: Case) -> tuple[Tensor, ...]:
    """The gradient of the squared gradients, as in a gradient penalty."""
    leaves = [tensor.clone().requires_grad_() for tensor in (given.rows, given.up, given.down)]
    out = network(*leaves, given.offsets, given.activation)
    grads = torch.autograd.grad(out, leaves, given.grad_out, create_graph=True)
    return torch.autograd.grad(sum(grad.square().mean() for grad in grads), leaves)


@every_activation
def test_differentiated_twice(activation: int) -> None:
    given = prepared(activation)
    for ours, theirs in zip(penalty(run, given), penalty(composed, given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


IN_DOUBLE = """
import torch, moegate.ops.experts, moegate.ops.experts.gradient
torch.manual_seed(0)
offsets = torch.tensor([1, 1, 3])
for activation, sides in ((0, 2), (1, 2), (2, 1), (5, 1)):
    shapes = (4, 2), (3, sides, 2), (3, 2, 1)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    run = lambda *tensors: torch.ops.moegate.experts(*tensors, offsets, activation, True)
    assert torch.autograd.gradcheck(run, leaves) and torch.autograd.gradgradcheck(run, leaves)
"""


def test_derivatives_in_double_precision() -> None:
    """On the references, in a process of their own: the kernels know float32 and bfloat16 alone."""
    environment = os.environ | {"MOEGATE_KERNEL": "0", "MOEGATE_STRICT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", IN_DOUBLE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_registration_is_sound() -> None:
    given = prepared(0)
    leaves = [tensor.requires_grad_() for tensor in (given.rows, given.up, given.down)]
    torch.library.opcheck(torch.ops.moegate.experts.default, (*leaves, given.offsets, 0, True))


def test_one_graph_gives_what_eager_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the compiler can't trace through poisoned memory
    torch._dynamo.trace_rules.clear_lru_cache()
    torch.compiler.reset()
    given = prepared(0)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [tensor.clone().requires_grad_() for tensor in (given.rows, given.up, given.down)]
    for network in (run, compiled):
        out = network(*leaves, given.offsets, 0)
        assert_close(torch.autograd.grad(out, leaves, given.grad_out), oracle(given))


def test_without_what_the_gradient_needs() -> None:
    given = prepared(0)
    out, _ = torch.ops.moegate.experts(given.rows.requires_grad_(), given.up, given.down, given.offsets, 0, False)
    with pytest.raises(RuntimeError, match="pass keep=True"):
        out.sum().backward()


# --- gradients into buffers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@every_dtype
def test_gradients_go_to_the_buffers(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    given = prepared(0, dtype)
    rows = given.rows.clone().requires_grad_()
    up, down = (tensor.to(weight_dtype).requires_grad_() for tensor in (given.up, given.down))
    buffers = torch.zeros(up.shape), torch.zeros(down.shape)
    for _ in range(2):
        out = experts_adding_gradients(rows, up, down, given.offsets, 0, buffers)
        out.backward(given.grad_out)
    assert up.grad is None and down.grad is None and rows.grad is not None
    plain = run(given.rows, up.detach().to(dtype), down.detach().to(dtype), given.offsets, 0)
    assert out.equal(plain)
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (rows, up, down)]
    expected = torch.autograd.grad(run(*leaves, given.offsets, 0), leaves, given.grad_out)
    bound = 1e-5 if dtype is torch.float32 else 2e-2
    for ours, once in zip((rows.grad, *buffers), expected, strict=True):
        theirs = 2 * once.float()
        torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=bound * float(theirs.abs().max()))


def test_rows_that_need_no_gradient() -> None:
    given = prepared(0)
    buffers = torch.zeros_like(given.up), torch.zeros_like(given.down)
    out = experts_adding_gradients(given.rows, given.up.requires_grad_(), given.down, given.offsets, 0, buffers)
    out.backward(given.grad_out)
    assert_close((given.rows, *buffers), (given.rows.double(), *oracle(given)[1:]))


def test_buffers_take_no_second_derivative() -> None:
    given = prepared(0)
    rows = given.rows.clone().requires_grad_()
    buffers = torch.zeros_like(given.up), torch.zeros_like(given.down)
    out = experts_adding_gradients(rows, given.up, given.down, given.offsets, 0, buffers)
    (grad,) = torch.autograd.grad(out, rows, given.grad_out.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
