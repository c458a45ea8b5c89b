"""Logits for the gating operators, and how a result is compared with a golden one."""

from collections.abc import Callable

import numpy as np
import torch
from golden_gating import Gate
from numpy.typing import NDArray
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Rows = Callable[[np.random.Generator, int, int], NDArray[np.float64]]


def _saturated(generator: np.random.Generator, num_rows: int, num_experts: int) -> NDArray[np.float64]:
    return generator.choice([20.0, 30.0, 40.0, 0.0, -1.0], size=(num_rows, num_experts))


def _minus_infinity(generator: np.random.Generator, num_rows: int, num_experts: int) -> NDArray[np.float64]:
    x = generator.normal(size=(num_rows, num_experts))
    x[:, generator.permutation(num_experts)[: num_experts // 2]] = -np.inf
    return x


def _tie_at_the_boundary(generator: np.random.Generator, num_rows: int, num_experts: int) -> NDArray[np.float64]:
    """Few distinct values, so that the k-th place is shared by many."""
    return generator.choice([-1.0, 0.0, 0.5, 1.0, 2.0], p=[0.2, 0.3, 0.3, 0.15, 0.05], size=(num_rows, num_experts))


PATTERNS: dict[str, Rows] = {
    "normal": lambda generator, t, e: generator.normal(size=(t, e)),
    "ties": _tie_at_the_boundary,
    "equal": lambda generator, t, e: np.full((t, e), 0.25),
    "saturated": _saturated,
    "minus_infinity": _minus_infinity,
}


def logits(pattern: str, num_rows: int, num_experts: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """``[T, E]``; ``normal`` in bfloat16 has ties inside the top 9 in four of ten rows."""
    rows = PATTERNS[pattern](np.random.default_rng(seed), num_rows, num_experts)
    return torch.from_numpy(rows).to(dtype)


def biases(kind: str, num_experts: int, dtype: torch.dtype, seed: int = 1) -> Tensor | None:
    """``[E]``: none, small numbers, equal pairs, or -inf for every third expert."""
    generator = np.random.default_rng(seed)
    if kind == "none":
        return None
    if kind == "pairs":
        return torch.from_numpy(generator.choice([-0.5, 0.0, 0.25], size=num_experts)).to(dtype)
    values = generator.normal(scale=0.1, size=num_experts)
    if kind == "minus_infinity":
        values[::3] = -np.inf
    return torch.from_numpy(values).to(dtype)


def widened(values: Tensor) -> NDArray[np.float32]:
    """The values in float32, which is exact for all dtypes of the operators."""
    return values.detach().float().numpy()


def assert_index(index: Tensor, golden: Gate, least_certain: float = 0.9) -> None:
    """The same experts in the same order, wherever the last bit of an ``exp`` does not decide."""
    assert index.dtype == torch.int32
    assert golden.certain.mean() >= least_certain
    np.testing.assert_array_equal(index.numpy()[golden.certain], golden.index[golden.certain])


def assert_weights(y: Tensor, golden: Gate, dtype: torch.dtype, ulp: int = 2) -> None:
    """Within ``ulp`` float32 ulp of the golden weights, then cast to ``dtype``, in the certain rows."""
    assert y.dtype == dtype
    expected, rows = golden.y, golden.certain
    slack = (ulp * np.spacing(np.abs(expected))).astype(np.float32)
    low, high = (torch.from_numpy(bound).to(dtype) for bound in (expected - slack, expected + slack))
    least, most = torch.minimum(low, high), torch.maximum(low, high)
    both_nan = torch.from_numpy(np.isnan(expected)) & y.isnan()
    fits = ((y >= least) & (y <= most)) | both_nan | (y == torch.from_numpy(expected).to(dtype))
    assert bool(fits[torch.from_numpy(rows)].all()), (y, expected)
