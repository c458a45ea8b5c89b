"""Tensors for the tests of the operators that move rows, and how results are compared with goldens."""

from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

Array = np.ndarray[Any, Any]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES = (
    (0, 2, 3, 4),
    (1, 1, 1, 1),
    (1, 8, 16, 16),
    (2, 2, 5, 3),
    (7, 3, 5, 4),
    (13, 2, 4, 20),
    (5, 4, 33, 8),
    (4, 2, 0, 3),
)
"""``(N, K, H, E)``: no tokens, one of everything, more slots than experts with rows, primes, no width."""

thorough = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
brief = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def random_rows(generator: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, exact in the type."""
    values = torch.from_numpy(generator.normal(size=shape))
    return (10 * values).to(dtype) if dtype == torch.int8 else values.to(dtype)


def random_experts(generator: np.random.Generator, num_tokens: int, top_k: int, num_experts: int) -> Tensor:
    """Expert ids ``[N, K]`` int32, repeated within a token where there are too few."""
    return torch.from_numpy(generator.integers(0, num_experts, (num_tokens, top_k)).astype(np.int32))


def widened(values: Tensor) -> Array:
    """The values as float32, or float64, or as they are when they are integers: every conversion is exact."""
    values = values.detach()
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return values.numpy()


def optional(values: Tensor | None) -> Array | None:
    return None if values is None else widened(values)


def same_bits(found: Tensor, golden: Array | Tensor) -> bool:
    """Whether the result is the golden, which was computed wide, rounded once to the result's type."""
    wanted = torch.as_tensor(golden).to(found.dtype)
    return found.shape == wanted.shape and torch.equal(found.detach(), wanted)


def within_two_ulp(found: Tensor, exact: Array, magnitude: Array) -> bool:
    """Whether float32 results are as near to the exact ones as two units in the last place of the terms' size."""
    return bool(
        np.all(np.abs(widened(found).astype(np.float64) - exact) <= 2 * np.spacing(magnitude.astype(np.float32)))
    )
