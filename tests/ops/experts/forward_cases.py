"""Arguments for the forward of the experts, its oracle in float64 NumPy, and a bound on the kernels' errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from moegate.ops.experts import ACTIVATIONS, GATED
from moegate.ops.experts.forward import EXPERTS
from moegate.ops.library import KERNELS, available_isas, forced_isa

needs_kernels = pytest.mark.skipif(not KERNELS.loaded, reason=f"tests the C++ kernels: {KERNELS.reason}")
every_isa = pytest.mark.parametrize("isa", available_isas())
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])

Array = NDArray[np.float64]
_phi = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)), otypes=[float])
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * _phi(x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}
FUNCTIONS |= {"swiglu": FUNCTIONS["silu"], "geglu": FUNCTIONS["gelu"]}


@dataclass(frozen=True)
class Case:
    """The arguments of the forward."""

    rows: Tensor
    up: Tensor
    down: Tensor
    offsets: Tensor
    activation: str

    def run(self, isa: str | None = None, *, keep: bool = False) -> tuple[Tensor, Tensor]:
        """By the kernel of one instruction set, or by whatever serves."""
        arguments = (self.rows, self.up, self.down, self.offsets, ACTIVATIONS.index(self.activation), keep)
        if isa is None:
            return EXPERTS(*arguments)  # type: ignore[no-any-return]
        with forced_isa(isa):
            return EXPERTS(*arguments)  # type: ignore[no-any-return]

    def take(self, chosen: list[int], ends: list[int]) -> "Case":
        return replace(self, rows=self.rows[chosen], offsets=torch.tensor(ends))


def case(
    ends: list[int],
    hidden: int,
    width: int,
    activation: str = "swiglu",
    *,
    num_rows: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Normal values; rows beyond the last end belong to nobody."""
    sides = 2 if activation in GATED else 1
    return Case(
        torch.randn(ends[-1] if num_rows is None else num_rows, hidden).to(dtype),
        (torch.randn(len(ends), sides * width, hidden) / max(hidden, 1) ** 0.5).to(dtype),
        (torch.randn(len(ends), hidden, width) / max(width, 1) ** 0.5).to(dtype),
        torch.tensor(ends, dtype=torch.int64),
        activation,
    )


def oracle(given: Case) -> tuple[Array, Array, Array]:
    """``(out, pre, reach)``: ``reach`` is what ``out`` would be if nothing cancelled, which errors are measured by."""
    rows, up, down = (tensor.double().numpy() for tensor in (given.rows, given.up, given.down))
    out, pre, reach = np.zeros(rows.shape), np.zeros((len(rows), up.shape[1])), np.zeros(rows.shape)
    start = 0
    for expert, end in enumerate(given.offsets.tolist()):
        own = slice(start, end)
        pre[own] = rows[own] @ up[expert].T
        most = abs(rows[own]) @ abs(up[expert]).T
        if given.activation in GATED:
            (gate, factor), (gate_most, factor_most) = np.split(pre[own], 2, 1), np.split(most, 2, 1)
        else:
            gate, factor, gate_most = pre[own], np.ones(()), most
            factor_most = most if given.activation == "relu2" else factor
        out[own] = (FUNCTIONS[given.activation](gate) * factor) @ down[expert].T
        reach[own] = (gate_most * factor_most) @ abs(down[expert]).T
        start = end
    return out, pre, reach


def assert_right(given: Case, out: Tensor) -> None:
    """Within a few roundings of what was added up."""
    expected, _, reach = oracle(given)
    assert out.shape == given.rows.shape and out.dtype is given.rows.dtype
    error = 2.0**-20 if out.dtype is torch.float32 else 2.0**-7
    assert (abs(out.double().numpy() - expected) <= error * reach + 1e-30).all()
