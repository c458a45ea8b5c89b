"""Logits, rules and backends as a hostile caller would combine them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from triton_support import examples

from moegate.ops import library
from moegate.ops.topk_gate.options import SCORES

thorough = settings(max_examples=examples(60), deadline=None, derandomize=True, database=None)
brief = settings(max_examples=examples(20), deadline=None, derandomize=True, database=None)

# Without kernels the same tests run on the reference, so that nothing is left out.
ALL_ISAS = library.available_isas() or ("reference",)
# The gate's code is the same with and without the bfloat16 instructions: most tests take one of the two.
ISAS = tuple(isa for isa in ALL_ISAS if isa != "avx512" or "avx512_bf16" not in ALL_ISAS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 33, 36, 48, 64, 97, 100, 128, 257)
LAYOUTS = ("contiguous", "transposed", "strided", "inside")

# 1.0078125 is the bfloat16 after 1; the finite values are exact in every dtype, or 0, so ties stay ties.
_POOLS: dict[str, list[float]] = {
    "ties": [-1.0, -0.0, 0.0, 0.5, 1.0, 1.0078125],
    "zeros": [-0.0, 0.0],
    "equal": [0.25],
    "saturated": [14.0, 14.5, 17.0, 40.0, 88.0, 104.0, 1024.0, 60000.0],
    "sunken": [-14.0, -39.5, -40.0, -40.5, -88.0, -104.0, -1024.0, -60000.0],
    "subnormal": [-(2.0**-133), -0.0, 2.0**-133, 3 * 2.0**-133, 2.0**-126, 2.0**-24],
    "infinite": [float("-inf"), float("inf"), 0.0, 1.0],
    "minus infinity": [float("-inf")],
    "one finite": [*[float("-inf")] * 30, 1.0],
    "broken": [float("nan"), -float("nan"), float("-inf"), float("inf"), -1.0, 0.0, 2.0],
    "nan": [float("nan")],
}
KINDS = ("narrow", "plain", "wide", *_POOLS)
_SPREAD = {"narrow": 0.1, "plain": 1.0, "wide": 6.0}


class Case(NamedTuple):
    logits: Tensor
    bias: Tensor | None
    mask: Tensor | None
    rule: dict[str, Any]

    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of ``topk_gate``."""
        return {"bias_E": self.bias, "token_mask_T": self.mask, **self.rule}


@contextmanager
def serving(isa: str, threads: int = 1) -> Iterator[None]:
    """One instruction set and number of threads for the length of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with nullcontext() if isa == "reference" else library.forced_isa(isa):
            yield
    finally:
        torch.set_num_threads(before)


def row_of(kind: str, num_experts: int, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    if kind in _SPREAD:
        return generator.normal(scale=_SPREAD[kind], size=num_experts)
    return generator.choice(_POOLS[kind], size=num_experts)


def laid_out(logits: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; what lies around them is NaN."""
    if layout == "transposed":
        return logits.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([logits, torch.full_like(logits, float("nan"))], dim=-1)[..., 0]
    if layout == "inside":
        frame = logits.new_full((logits.shape[0] + 2, logits.shape[1] + 3), float("nan"))
        frame[1:-1, 1:-2] = logits
        return frame[1:-1, 1:-2]
    return logits


@st.composite
def rules(draw: st.DrawFn, num_experts: int) -> dict[str, Any]:
    divisors = [d for d in range(1, num_experts + 1) if num_experts % d == 0]
    num_groups = draw(st.sampled_from([1, *divisors]))
    groups_kept = draw(st.integers(1, num_groups))
    size = num_experts // num_groups
    most = groups_kept * size
    return {
        "top_k": draw(st.sampled_from(sorted({min(k, most) for k in (1, 2, 3, 8, 16, 17, 40)} | {most}))),
        "score": draw(st.sampled_from(SCORES)),
        "num_groups": num_groups,
        "groups_kept": groups_kept,
        "group_score": draw(st.sampled_from(["max", "top2_sum"])) if size > 1 else "max",
        "renormalize": draw(st.booleans()),
        "eps": draw(st.sampled_from([0.0, 1e-20, 1e-6, 0.5])),
        "scale": draw(st.sampled_from([1.0, 2.5, 1 / 3])),
        "rank_by": draw(st.sampled_from(["logits", "scores"])),
    }


@st.composite
def cases(
    draw: st.DrawFn, *, sizes: tuple[int, ...] = SIZES, kinds: tuple[str, ...] = KINDS, max_tokens: int = 4
) -> Case:
    num_experts = draw(st.sampled_from(sizes))
    row_kinds = draw(st.lists(st.sampled_from(kinds), min_size=0, max_size=max_tokens))
    generator = np.random.default_rng(draw(st.integers(0, 2**20)))
    rows = np.array([row_of(kind, num_experts, generator) for kind in row_kinds]).reshape(-1, num_experts)
    logits = torch.from_numpy(rows).to(draw(st.sampled_from(DTYPES)))
    biases = {
        "none": None,
        "small": generator.normal(scale=0.01, size=num_experts),
        "great": generator.normal(scale=10.0, size=num_experts),
        "few": generator.choice([-1.0, 0.0, 1.0], size=num_experts),
        "broken": generator.choice([0.0, np.nan, np.inf, -np.inf], size=num_experts),
    }
    bias = biases[draw(st.sampled_from(sorted(biases)))]
    masked = draw(st.booleans())
    return Case(
        logits=laid_out(logits, draw(st.sampled_from(LAYOUTS))),
        bias=None if bias is None else torch.from_numpy(bias).float(),
        mask=torch.from_numpy(generator.random(len(row_kinds)) < 0.7) if masked else None,
        rule=draw(rules(num_experts)),
    )
