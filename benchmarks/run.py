"""Time moegate against plain PyTorch: check first, then time both sides in turn, then keep the numbers.

A ratio above 1 means that moegate is faster. Results are appended to benchmarks/results/.
"""

import json
import os
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import cases
import timing
import torch
import typer
from rich.console import Console
from rich.table import Table

from moegate.cli.doctor import survey

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit that is measured, marked when the working tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def circumstances() -> dict[str, Any]:
    """What a reader needs to judge a number: machine, versions, threads, load, commit, time."""
    facts = survey()
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": facts["processor"],
        "python": facts["python"],
        "packages": facts["packages"],
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def record(found: list[dict[str, Any]], known: dict[str, Any], path: Path) -> str:
    """Append results with their circumstances, one line each; return what to tell the reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**result, **known}) + "\n" for result in found)
    return f"{known['threads']} threads, load average {known['load_average']}; appended to {path}"


def measure(case: cases.Case, rounds: int) -> dict[str, Any]:
    """Check the case, time it, and give one result line."""
    case.check()
    timings = timing.interleaved(case.variants, rounds)
    return {
        "case": case.name,
        "shape": str(case.shape),
        "rounds": rounds,
        "microseconds": {name: {"median": t.median_us, "min": t.min_us} for name, t in timings.items()},
        "ratio_of_medians": timings["plain"].median_us / timings["moegate"].median_us,
        "ratio_of_minima": timings["plain"].min_us / timings["moegate"].min_us,
    }


def table_of(results: list[dict[str, Any]]) -> Table:
    """Median and minimum of both sides in microseconds, and plain / moegate."""
    title = "µs a call, median (minimum); a ratio above 1: moegate is faster"
    table = Table("case", title=title, title_justify="left", show_lines=True)
    for name in ("moegate", "plain", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        sides = [result["microseconds"][name] for name in ("moegate", "plain")]
        times = [f"{side['median']:,.0f} ({side['min']:,.0f})" for side in sides]
        ratio = f"{result['ratio_of_medians']:.2f} ({result['ratio_of_minima']:.2f})"
        table.add_row(f"{result['case']}\n{result['shape']}", *times, ratio)
    return table


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each of about 20 ms a side.")] = 25,
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 leaves its default.")] = 0,
    results: Annotated[Path, typer.Option(help="The folder to append to.")] = RESULTS,
) -> None:
    """Check, then time route() and MoE against plain PyTorch."""
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    known = circumstances()
    found = []
    for case in cases.all_cases():
        with console.status(f"{case.name} {case.shape}"):
            found.append(measure(case, rounds))
    console.print(table_of(found))
    console.print(record(found, known, results / "plain_pytorch.jsonl"))


if __name__ == "__main__":
    typer.run(main)
