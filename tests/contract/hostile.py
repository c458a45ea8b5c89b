"""Logits as a hostile model would make them: ties, both zeros, NaN, infinities, saturation, odd sizes, odd strides."""

from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from triton_support import examples

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (1, 2, 3, 5, 7, 8, 13, 16, 31, 64, 100)

thorough = settings(max_examples=examples(50), deadline=None, derandomize=True, database=None)
brief = settings(max_examples=examples(12), deadline=None, derandomize=True, database=None)

# 1.0078125 is the bfloat16 after 1; the finite values are exact in every dtype, so ties stay ties.
_POOLS: dict[str, list[float]] = {
    "ties": [-1.0, -0.0, 0.0, 0.5, 1.0, 1.0078125],
    "zeros": [-0.0, 0.0],
    "equal": [0.25],
    "saturated": [14.0, 14.5, 17.0, 40.0, 88.0, 104.0, 1024.0, 60000.0],
    "sunken": [-14.0, -88.0, -104.0, -1024.0, -60000.0],
    "infinite": [float("-inf"), float("inf"), 0.0, 1.0],
    "minus infinity": [float("-inf")],
    "broken": [float("nan"), -float("nan"), float("-inf"), float("inf"), -1.0, 0.0, 2.0],
    "nan": [float("nan")],
}
KINDS = ("plain", *_POOLS)
FINITE = ("plain", "ties", "zeros", "equal", "saturated", "sunken")
LAYOUTS = ("contiguous", "transposed", "strided", "offset")


def row_of(kind: str, num_experts: int, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    if kind == "plain":
        return generator.normal(scale=2.0, size=num_experts)
    return generator.choice(_POOLS[kind], size=num_experts)


def laid_out(logits_TE: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; what lies between them is NaN."""
    if layout == "transposed":
        return logits_TE.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([logits_TE, torch.full_like(logits_TE, float("nan"))], dim=-1)[..., 0]
    if layout == "offset":
        return torch.cat([torch.full_like(logits_TE[:, :1], float("nan")), logits_TE], dim=1)[:, 1:]
    return logits_TE


@st.composite
def logits(
    draw: st.DrawFn,
    *,
    sizes: tuple[int, ...] = SIZES,
    kinds: tuple[str, ...] = KINDS,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    max_tokens: int = 6,
) -> Tensor:
    """``[T, E]``, each row of its own kind, in any layout."""
    num_experts = draw(st.sampled_from(sizes))
    row_kinds = draw(st.lists(st.sampled_from(kinds), min_size=0, max_size=max_tokens))
    generator = np.random.default_rng(draw(st.integers(0, 2**20)))
    rows = np.array([row_of(kind, num_experts, generator) for kind in row_kinds]).reshape(-1, num_experts)
    values = torch.from_numpy(rows).to(draw(st.sampled_from(dtypes)))
    return laid_out(values, draw(st.sampled_from(LAYOUTS)))


def top_k_for(num_experts: int) -> st.SearchStrategy[int]:
    """1 to E, with E itself likely."""
    return st.sampled_from(sorted({min(k, num_experts) for k in (1, 2, 3, 8)} | {num_experts}))
