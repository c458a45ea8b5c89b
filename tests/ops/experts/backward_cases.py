"""Arguments for the backward of the experts, its oracle in float64, and the kernel with outputs of the caller's."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import moegate.ops.experts.backward  # registers the operators  # noqa: F401
from moegate.ops.library import KERNELS, available_isas, forced_isa

ACTIVATIONS: tuple[tuple[bool, Callable[[Tensor], Tensor]], ...] = (
    (True, functional.silu),
    (True, functional.gelu),
    (False, functional.gelu),
    (False, lambda values: functional.relu(values) ** 2),
    (False, functional.relu),
    (False, functional.silu),
)
"""Whether each is gated, and its function, at the number that the operators know it by."""
RELU = 4

needs_kernels = pytest.mark.skipif(not KERNELS.loaded, reason=f"tests the C++ kernels: {KERNELS.reason}")
every_isa = pytest.mark.parametrize("isa", available_isas())
every_activation = pytest.mark.parametrize("activation", range(len(ACTIVATIONS)))
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """The arguments of the backward."""

    grad_out: Tensor
    rows: Tensor
    pre: Tensor
    up: Tensor
    down: Tensor
    offsets: Tensor
    activation: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.grad_out, self.rows, self.pre, self.up, self.down, self.offsets

    def to(self, dtype: torch.dtype) -> "Case":
        values = (tensor.to(dtype) for tensor in self.tensors[:5])
        return Case(*values, offsets=self.offsets, activation=self.activation)

    def with_rows(self, chosen: Tensor, offsets: Tensor) -> "Case":
        return replace(
            self, grad_out=self.grad_out[chosen], rows=self.rows[chosen], pre=self.pre[chosen], offsets=offsets
        )


def case(ends: list[int], hidden: int, width: int, activation: int = 0, *, num_rows: int | None = None) -> Case:
    """Normal values; rows beyond the last end belong to nobody."""
    num_rows = ends[-1] if num_rows is None else num_rows
    pre_width = 2 * width if ACTIVATIONS[activation][0] else width
    return Case(
        torch.randn(num_rows, hidden),
        torch.randn(num_rows, hidden),
        torch.randn(num_rows, pre_width),
        torch.randn(len(ends), pre_width, hidden),
        torch.randn(len(ends), hidden, width),
        torch.tensor(ends, dtype=torch.int64),
        activation,
    )


def whole_numbers(ends: list[int], hidden: int, width: int) -> Case:
    """With these, everything between the products is exact in bfloat16 too, so results are rounded once at most."""
    drawn = case(ends, hidden, width, RELU)
    few = [(torch.randint(-8, 9, t.shape) / 8).trunc() for t in (drawn.grad_out, drawn.down)]
    some = [torch.randint(-2, 3, t.shape).float() for t in (drawn.rows, drawn.pre, drawn.up)]
    return Case(few[0], some[0], some[1], some[2], few[1], drawn.offsets, RELU)


def oracle(given: Case) -> Gradients:
    """Autograd in float64, one expert after the other; experts without rows and rows without experts give 0."""
    grad_out, rows, pre, up, down = (tensor.double() for tensor in given.tensors[:5])
    gated, function = ACTIVATIONS[given.activation]
    grads = torch.zeros_like(rows), torch.zeros_like(up), torch.zeros_like(down)
    start = 0
    for expert, end in enumerate(given.offsets.tolist()):
        if end > start:
            leaf = pre[start:end].clone().requires_grad_()
            gate, factor = leaf.chunk(2, dim=-1) if gated else (leaf, torch.ones(()))
            inner = function(gate) * factor
            (grad_pre,) = torch.autograd.grad(inner, leaf, grad_out[start:end] @ down[expert])
            grads[0][start:end] = grad_pre @ up[expert]
            grads[1][expert] = grad_pre.T @ rows[start:end]
            grads[2][expert] = grad_out[start:end].T @ inner.detach()
        start = end
    return grads


def outputs(given: Case, gradient_dtype: torch.dtype | None = None) -> Gradients:
    """Poisoned memory for the results."""
    dtype = gradient_dtype or given.up.dtype
    return (
        torch.empty(given.rows.shape, dtype=given.rows.dtype),
        torch.empty(given.up.shape, dtype=dtype),
        torch.empty(given.down.shape, dtype=dtype),
    )


def run_kernel(given: Case, isa: str | None = None, threads: int = 1) -> Gradients:
    """All three gradients by the kernel of one instruction set."""
    results = outputs(given)
    torch.set_num_threads(threads)
    forced: AbstractContextManager[None] = nullcontext() if isa is None else forced_isa(isa)
    with forced:
        torch.ops.moegate.experts_backward_kernel(*given.tensors, given.activation, *results, False)
    torch.set_num_threads(1)
    return results


def assert_close(found: Gradients, expected: Gradients) -> None:
    """Errors stay small against the largest element; bfloat16 rounds what lies between the products too."""
    bound = {torch.float64: 1e-12, torch.float32: 2e-6}.get(found[0].dtype, 1e-2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        scale = float(theirs.abs().amax()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound * scale)
