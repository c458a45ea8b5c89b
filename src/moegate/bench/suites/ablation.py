"""``moegate bench ablation``: what each optimisation of the gate brings, switched off alone, in time and instructions.

The four are those of the first article's table 5.2; see ``moegate.ops.topk_gate.ablation``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from moegate.bench.ablation_driver import Call
from moegate.bench.cases import Case, Entry, Variant, Verdict, Work, sizes
from moegate.bench.instructions import Counts, count
from moegate.bench.oracles.gate import Chosen, GateOracle, GateRule
from moegate.bench.pictures import draw_bars
from moegate.bench.results import Row
from moegate.bench.suites.suite import Part, Suite
from moegate.bench.tables import by_case, tell_cases
from moegate.ops.topk_gate import Gated, topk_gate
from moegate.ops.topk_gate.ablation import OPTIMISATIONS, ablated_topk_gate

ALL_ON = "all on"
KERNEL = "topk_gate itself"
PREFETCH = "prefetch added"
WITHOUT = {name: f"without {name.replace('_', ' ')}" for name in OPTIMISATIONS[1:]}
CLAIMS = {"blocking": 35, "tree_reduction": 28, "branch_free": 22, "structure_of_arrays": 41}
"""What the article says each optimisation brings, in per cent."""
_NAME = "sigmoid bias"


@dataclass(frozen=True)
class Problem:
    """The sizes of a case."""

    num_tokens: int
    num_experts: int
    top_k: int

    @property
    def shape(self) -> dict[str, int]:
        """The sizes by their letters."""
        return {"T": self.num_tokens, "E": self.num_experts, "K": self.top_k}

    def calls(self) -> dict[str, Call]:
        """Variant -> the call of it."""
        plain = partial(Call, self.num_tokens, self.num_experts, self.top_k)
        return {
            ALL_ON: plain(),
            **{WITHOUT[name]: plain(switched_off=name) for name in OPTIMISATIONS[1:]},
            PREFETCH: plain(prefetch=True),
        }


PROBLEMS = (Problem(4096, 64, 8), Problem(4096, 256, 8), Problem(4096, 256, 32), Problem(1024, 2048, 8))
QUICK = (Problem(64, 64, 8),)


@cache
def instructions() -> Counts:
    """Instructions a token of all variants at all sizes; counted once, since most of it is the start of a process."""
    return count([call for problem in PROBLEMS for call in problem.calls().values()])


def ablation_case(problem: Problem, *, counts_instructions: bool) -> Case:
    """The gate whole, without each of its optimisations, and with prefetching."""
    generator = torch.Generator().manual_seed(problem.num_experts)
    logits_TE = torch.randn(problem.num_tokens, problem.num_experts, generator=generator)
    bias_E = 0.1 * torch.randn(problem.num_experts, generator=generator)

    def variant(name: str, call: Call) -> Variant:
        gate = partial(ablated_topk_gate, logits_TE, bias_E, top_k=call.top_k)
        return Variant(name, partial(gate, switched_off=call.switched_off, prefetch=call.prefetch), ours=True)

    whole = partial(topk_gate, logits_TE, top_k=problem.top_k, score="sigmoid", bias_E=bias_E, renormalize=True)
    variants = [variant(name, call) for name, call in problem.calls().items()]
    return Case(
        name=_NAME,
        shape=problem.shape,
        timed="float32 logits to int64 indices and renormalised weights",
        variants=(variants[0], Variant(KERNEL, whole, ours=True), *variants[1:]),
        check=_check(logits_TE, bias_E, problem.top_k, whole),
        work=Work(num_bytes=problem.num_tokens * (problem.num_experts * 4 + problem.top_k * 12)),
        facts={"instructions": partial(_facts, problem)} if counts_instructions else {},
    )


def _check(logits_TE: Tensor, bias_E: Tensor, top_k: int, whole: Callable[[], Gated]) -> Callable[[Gated], Verdict]:
    oracle = GateOracle(logits_TE, bias_E, GateRule("sigmoid", top_k, biased=True))
    expected = whole()

    def verdict(found: Gated) -> Verdict:
        wrong = oracle.verdict(Chosen(found.index, found.weights))
        if wrong is not None:
            return wrong
        same = torch.equal(found.index, expected.index) and torch.equal(found.weights, expected.weights)
        return None if same else "not the bits of topk_gate"

    return verdict


def _facts(problem: Problem) -> dict[str, Any]:
    counts = instructions()
    found = {name: counts.per_token[call] for name, call in problem.calls().items() if call in counts.per_token}
    return {"how": counts.how, "per_token": found}


def entries() -> list[Entry]:
    """The four sizes; a small one without instructions when quick."""
    return [
        Entry(
            f"{_NAME} {sizes(problem.shape)}",
            partial(ablation_case, problem, counts_instructions=not quick),
            quick,
        )
        for quick, problems in ((False, PROBLEMS), (True, QUICK))
        for problem in problems
    ]


def gain(row: Row, optimisation: str) -> float | None:
    """How much longer it takes without an optimisation, in per cent; None where that was not timed."""
    ratio = row["ratios"].get(WITHOUT[optimisation])
    return None if ratio is None else 100.0 * (ratio["min"] - 1.0)


def tell(rows: Sequence[Row]) -> list[Part]:
    """Times, instructions, and the gains beside those that the article claims."""
    times, *sentences = tell_cases(rows, title="The gate with one of its optimisations switched off")
    return [times, _instructions_table(rows), _gains_table(rows), *_how_counted(rows), *sentences]


def _first_rows(rows: Sequence[Row]) -> list[Row]:
    """A row a case: that of the fewest threads."""
    return [of_threads[min(of_threads)] for of_threads in by_case(rows).values()]


def _instructions_table(rows: Sequence[Row]) -> Table:
    table = Table("variant", title="Instructions a token (×: as a multiple of all on)", title_justify="left")
    shown = _first_rows(rows)
    for row in shown:
        table.add_column(sizes(row["shape"]), justify="right")
    for name in (ALL_ON, *WITHOUT.values(), PREFETCH):
        table.add_row(name, *(_instructions_cell(row, name) for row in shown))
    return table


def _instructions_cell(row: Row, name: str) -> str:
    found = row["facts"].get("instructions", {}).get("per_token", {})
    if name not in found:
        return "not measured"
    return f"{found[name]:,.0f} (× {found[name] / found[ALL_ON]:.2f})"


def _how_counted(rows: Sequence[Row]) -> list[str]:
    ways = dict.fromkeys(
        row["facts"].get("instructions", {}).get("how", "not measured: --quick") for row in _first_rows(rows)
    )
    return [f"Instructions: {'; '.join(ways)}."]


def _gains_table(rows: Sequence[Row]) -> Table:
    shown = _first_rows(rows)
    title = f"Gain in time of each optimisation, {shown[0]['threads']} thread: how much longer it takes without"
    table = Table("optimisation", title=title, title_justify="left")
    table.add_column("the article", justify="right")
    for row in shown:
        table.add_column(sizes(row["shape"]), justify="right")
    for name, claim in CLAIMS.items():
        gains = [gain(row, name) for row in shown]
        cells = ["–" if found is None else f"{found:+,.0f} %" for found in gains]
        table.add_row(name.replace("_", " "), f"+{claim} %", *cells)
    return table


def draw(rows: Sequence[Row], base: Path) -> list[Path]:
    """Bars of the times as multiples of the whole gate's."""
    return draw_bars(rows, base, title="The gate with one of its optimisations switched off")


SUITE = Suite(
    name="ablation",
    entries=entries,
    tell=tell,
    draw=draw,
)
