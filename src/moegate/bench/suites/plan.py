"""``moegate bench plan``: from indices to sorted rows and back to tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moegate.bench.cases import CPU, Case, Entry, Place, Variant, Work, sizes
from moegate.bench.oracles.plan import Places, PlanOracle
from moegate.bench.peers import liger, moe_ops, pytorch_plan
from moegate.bench.pictures import draw_bars
from moegate.bench.suites.suite import Suite, Variants
from moegate.bench.tables import tell_cases
from moegate.ops.combine import combine
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.permute import permute

OURS = "moegate"
_MOE_OPS = f"{moe_ops.NAME}, its plan included"
_NUMBER = 8  # bytes of an int64


@dataclass(frozen=True)
class Problem:
    """The sizes of a plan, and for rows their width and type."""

    num_tokens: int
    num_experts: int
    top_k: int
    hidden: int = 0
    dtype: torch.dtype = torch.float32
    place: Place = CPU

    @property
    def shape(self) -> dict[str, int]:
        """The sizes by their letters."""
        found = {"T": self.num_tokens, "E": self.num_experts, "K": self.top_k}
        return {**found, "D": self.hidden} if self.hidden else found

    @property
    def type_name(self) -> str:
        """`` bf16`` or `` fp32``; empty for a plan, which has indices alone."""
        return "" if not self.hidden else " bf16" if self.dtype == torch.bfloat16 else " fp32"

    def index(self) -> Tensor:
        """``[T, K]`` distinct experts a token, evenly spread."""
        device = self.place.device
        generator = torch.Generator(device).manual_seed(self.num_tokens + self.num_experts)
        ranking_TE = torch.rand(self.num_tokens, self.num_experts, generator=generator, device=device)
        return ranking_TE.topk(self.top_k, dim=-1).indices

    def rows_and_tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows ``[R, D]``, hidden states ``[T, D]`` and float32 weights ``[T, K]``."""
        device = self.place.device
        generator = torch.Generator(device).manual_seed(self.hidden)
        drawn = partial(torch.randn, generator=generator, device=device)
        rows_RD = drawn(self.num_tokens * self.top_k, self.hidden).to(self.dtype)
        hidden_TD = drawn(self.num_tokens, self.hidden).to(self.dtype)
        return rows_RD, hidden_TD, torch.rand(self.num_tokens, self.top_k, generator=generator, device=device)


def plan_case(problem: Problem) -> Case:
    """Indices to counts, offsets, order and inverse."""
    index_TK = problem.index()
    num_rows, num_experts = index_TK.numel(), problem.num_experts

    def variant(name: str, plan: Callable[[Tensor, int], Any], ours: bool = False) -> Variant:
        return Variant(name, partial(plan, index_TK, num_experts), read=lambda found: Places(*found), ours=ours)

    variants = Variants(
        variant(OURS, dispatch_plan, ours=True),
        variant("PyTorch sort, bincount", pytorch_plan.plan),
    )
    if problem.place.accelerated:
        variants.found.append(variant("PyTorch sort, histc", pytorch_plan.plan_without_waiting))
        variants.add(liger.NAME, lambda: variant(liger.NAME, liger.plan()))
    return Case(
        name="plan",
        shape=problem.shape,
        timed="int64 indices to counts, offsets, stable order and inverse",
        variants=tuple(variants.found),
        check=PlanOracle(index_TK, num_experts).places_verdict,
        work=Work(num_bytes=3 * num_rows * _NUMBER + 2 * num_experts * _NUMBER),
        missing=variants.missing,
    )


def permute_case(problem: Problem) -> Case:
    """Tokens to sorted rows."""
    index_TK = problem.index()
    _, hidden_TD, _ = problem.rows_and_tokens()
    slots = pytorch_plan.plan(index_TK, problem.num_experts)
    oracle = PlanOracle(index_TK, problem.num_experts)
    moved = (index_TK.numel() + problem.num_tokens) * problem.hidden * problem.dtype.itemsize
    ours = partial(permute, hidden_TD, slots.slot, slots.inverse.view(index_TK.shape))
    variants = Variants(
        Variant(OURS, ours, ours=True),
        Variant("PyTorch gather", partial(pytorch_plan.permute, hidden_TD, slots.slot, problem.top_k)),
    )
    if problem.place.accelerated:
        variants.add(_MOE_OPS, lambda: _permute_of_moe_ops(hidden_TD, index_TK, problem.num_experts))
    return Case(
        name=f"permute{problem.type_name}",
        shape=problem.shape,
        timed="hidden states and the plan to sorted rows",
        variants=tuple(variants.found),
        check=lambda rows_RD: oracle.rows_verdict(rows_RD, hidden_TD),
        work=Work(num_bytes=moved + index_TK.numel() * _NUMBER),
        missing=variants.missing,
    )


def _permute_of_moe_ops(hidden_TD: Tensor, index_TK: Tensor, num_experts: int) -> Variant:
    slot_R = pytorch_plan.plan(index_TK, num_experts).slot

    def read(found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The rows in the stable order: its own is that of a race."""
        rows_RD, place_N, _ = found
        return rows_RD[place_N.view(index_TK.shape[::-1]).T.reshape(-1)[slot_R].long()]

    return Variant(_MOE_OPS, partial(moe_ops.permute(num_experts), hidden_TD, index_TK), read=read)


def combine_case(problem: Problem) -> Case:
    """Sorted rows to the tokens' weighted sums."""
    index_TK = problem.index()
    rows_RD, _, weights_TK = problem.rows_and_tokens()
    slots = pytorch_plan.plan(index_TK, problem.num_experts)
    oracle = PlanOracle(index_TK, problem.num_experts)
    moved = (index_TK.numel() + problem.num_tokens) * problem.hidden * problem.dtype.itemsize
    ours = partial(combine, rows_RD, slots.slot, slots.inverse.view(index_TK.shape), weights_TK)
    by_adding = partial(pytorch_plan.combine_by_index_add, rows_RD, slots.slot, weights_TK)
    by_inverse = partial(pytorch_plan.combine_by_inverse, rows_RD, slots.inverse, weights_TK)
    variants = Variants(
        Variant(OURS, ours, ours=True),
        Variant("PyTorch index_add", by_adding),
        Variant("PyTorch inverse", by_inverse),
    )
    if problem.place.accelerated:
        inverse_N = slots.inverse.int()
        place_N = inverse_N.view(index_TK.shape).T.reshape(-1)
        unpermuted = partial(Variant, moe_ops.NAME)
        summed = partial(Variant, liger.NAME)
        variants.add(moe_ops.NAME, lambda: unpermuted(partial(moe_ops.unpermute(), rows_RD, place_N, weights_TK)))
        variants.add(liger.NAME, lambda: summed(partial(liger.combine(), rows_RD, inverse_N, weights_TK)))
    return Case(
        name=f"combine{problem.type_name}",
        shape=problem.shape,
        timed="sorted rows, the plan and weights to the tokens' sums, accumulated in float32",
        variants=tuple(variants.found),
        check=lambda out_TD: oracle.sums_verdict(out_TD, rows_RD, weights_TK),
        work=Work(num_bytes=moved + index_TK.numel() * (_NUMBER + 4)),
        missing=variants.missing,
    )


PLANS = (
    Problem(4096, 256, 8),
    Problem(512, 64, 8),
    Problem(16384, 256, 8),
    Problem(4096, 2048, 32),
    Problem(1, 256, 8),
)
ROWS = (
    Problem(4096, 256, 8, hidden=512),
    Problem(4096, 256, 8, hidden=512, dtype=torch.bfloat16),
    Problem(512, 64, 8, hidden=1024, dtype=torch.bfloat16),
)
QUICK_PLAN = Problem(256, 32, 4)
QUICK_ROWS = Problem(64, 16, 4, hidden=64)


def entries() -> list[Entry]:
    """The cases of the plan; small ones when quick."""

    def entry(name: str, build: Callable[[Problem], Case], problem: Problem, quick: bool = False) -> Entry:
        return Entry(f"{name}{problem.type_name} {sizes(problem.shape)}", partial(build, problem), quick)

    return [
        *(entry("plan", plan_case, problem) for problem in PLANS),
        *(entry("permute", permute_case, problem) for problem in ROWS),
        *(entry("combine", combine_case, problem) for problem in ROWS),
        entry("plan", plan_case, QUICK_PLAN, quick=True),
        entry("permute", permute_case, QUICK_ROWS, quick=True),
        entry("combine", combine_case, QUICK_ROWS, quick=True),
    ]


SUITE = Suite(
    name="plan",
    entries=entries,
    tell=partial(tell_cases, title="Plan"),
    draw=partial(draw_bars, title="Plan: time of each peer as a multiple of moegate's"),
)
