"""Which way to find the k greatest is fast where: sort, heap, quickselect, blocks, and the operator itself.

Every variant is checked against a stable sort of the row before it is timed.
"""

from pathlib import Path
from typing import Annotated, Any

import timing
import torch
import typer
from rich.console import Console
from rich.table import Table
from run import RESULTS, circumstances, record

from moegate.ops.ordered_topk import ordered_topk
from moegate.ops.ordered_topk.algorithms import ALGORITHMS

VARIANTS = {**ALGORITHMS, "ordered_topk": ordered_topk}
ROWS = 256
SHAPES = [(n, k) for n in (8, 64, 256, 2048, 16384) for k in (1, 2, 8, 32) if k <= n]


def measure(num_elements: int, k: int, rounds: int) -> dict[str, Any]:
    """Check and time all variants on rows of ``num_elements``."""
    values = torch.randn(ROWS, num_elements, generator=torch.Generator().manual_seed(0))
    wanted = values.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    for name, variant in VARIANTS.items():
        if not torch.equal(variant(values, k), wanted):
            raise SystemExit(f"not timed: {name} chose other elements than a stable sort, N={num_elements} k={k}")
    calls = {name: lambda variant=variant: variant(values, k) for name, variant in VARIANTS.items()}
    timings = timing.interleaved(calls, rounds)
    micros = {name: {"median": found.median_us, "min": found.min_us} for name, found in timings.items()}
    return {
        "case": "topk",
        "rows": ROWS,
        "num_elements": num_elements,
        "k": k,
        "rounds": rounds,
        "microseconds": micros,
    }


def table_of(results: list[dict[str, Any]]) -> Table:
    """Microseconds per row, the fastest of a line in bold."""
    table = Table("N", "k", title="µs a row, minimum of the rounds", title_justify="left")
    for name in VARIANTS:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        per_row = {name: side["min"] / ROWS for name, side in result["microseconds"].items()}
        best = min(per_row.values())
        cells = [f"[bold]{time:.2f}[/]" if time == best else f"{time:.2f}" for time in per_row.values()]
        table.add_row(str(result["num_elements"]), str(result["k"]), *cells)
    return table


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each of about 20 ms a variant.")] = 5,
    results: Annotated[Path, typer.Option(help="The folder to append to.")] = RESULTS,
) -> None:
    """Check, then time the ways to find the k greatest of a row."""
    console = Console()
    known = circumstances()
    found = []
    for num_elements, k in SHAPES:
        with console.status(f"N={num_elements} k={k}"):
            found.append(measure(num_elements, k, rounds))
    console.print(table_of(found))
    console.print(record(found, known, results / "topk.jsonl"))


if __name__ == "__main__":
    typer.run(main)
