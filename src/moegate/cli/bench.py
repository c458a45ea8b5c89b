"""`moegate bench`: check, then time moegate against its peers and against what the machine can do."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegate.bench.suites import SUITES, load_suite

EXAMPLES = (
    "moegate bench --device cuda --all",
    "moegate bench gate --device cuda --only 'softmax T=8192'",
    "moegate bench gate --quick",
    "moegate bench gate --only 'E=256 K=8' --threads 2",
    "moegate bench layer --only bf16 --without transformers",
    "moegate bench all --resume",
)
_WHAT = "; ".join(f"{name}: {purpose}" for name, purpose in SUITES.items()) + "; all: each of them."
_THREADS = "Numbers of PyTorch's threads; every case is measured with each."
_QUICK = "A few small cases in some seconds, to see that everything works."
_OUTPUT = "Folder to append to; by default benchmarks/results in a clone, moegate-bench elsewhere and for a quick look."
_ONLY = "Cases with one of these texts in their names, separated by commas."
_WITHOUT = "Leave out peers with one of these texts in their names."
_RESUME = "Take over what this commit has measured on this machine before, and measure the rest."
_ROUNDS = "The most rounds of a variant; the rounds of all variants alternate."
_DEVICE = "cpu; cuda; or rehearsal: the steps of cuda on the CPU, with tiny sizes and without times."
_ALL = "Every suite, one after the other, as with the suite all."
_SECONDS = "For a whole sitting on a GPU; what is left then is named and left out."
_CPU_OPTIONS = ("threads", "quick", "without", "resume", "rounds")
_INTERRUPTED = 130


def bench(
    context: typer.Context,
    suite: Annotated[str | None, typer.Argument(help=_WHAT, show_default=False)] = None,
    device: Annotated[str, typer.Option(help=_DEVICE)] = "cpu",
    every: Annotated[bool, typer.Option("--all", help=_ALL)] = False,
    seconds: Annotated[float, typer.Option(help=_SECONDS)] = 420.0,
    threads: Annotated[str, typer.Option(help=_THREADS)] = "1,2",
    quick: Annotated[bool, typer.Option("--quick", help=_QUICK)] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=_OUTPUT, show_default=False)] = None,
    only: Annotated[str, typer.Option(help=_ONLY, show_default=False)] = "",
    without: Annotated[str, typer.Option(help=_WITHOUT, show_default=False)] = "",
    resume: Annotated[bool, typer.Option("--resume", help=_RESUME)] = False,
    rounds: Annotated[int, typer.Option(min=3, help=_ROUNDS)] = 21,
) -> None:
    """Time moegate against its peers, after a check that all of them compute the same.

    Each variant is compared with a float64 oracle first; a wrong one gets no time, and the output says how wrong it
    is. The right ones are timed in turn, in one process. The floor is what the bytes or the matrix products of a case
    take at the rates that this machine reaches, measured at the start.

    Each measurement is appended to SUITE.jsonl at once, so Ctrl-C loses nothing; beside it go the tables (SUITE.md)
    and, with matplotlib, a picture. Peers that are not installed are named and left out: make bench installs them.
    The exit status is 1 when a result of moegate itself is wrong.

    On a GPU the suites are checks, gate, plan, layer, decode, more. One sitting of under eight minutes checks with
    hostile inputs, then times everything in CUDA graphs by events, by importance, and writes cuda.jsonl and cuda.md:
    every case beside its floor, its peers and its target. PyTorch and Triton suffice, from a source tree:
    PYTHONPATH=src python -m moegate.cli bench --device cuda --all. Peers may lie unpacked in folders that MOEGATE_PEERS
    names.
    """
    name = _suite_of(suite, every=every)
    if device != "cpu":
        _refuse_options_of_the_cpu(context)
        from moegate.bench.gpu.verb import bench_on_device

        raise typer.Exit(bench_on_device(name, device, seconds=seconds, only=only, output=output))
    _bench_on_cpu(name, threads, quick, output, only, without, resume, rounds)


def _suite_of(suite: str | None, *, every: bool) -> str:
    if every and suite not in {None, "all"}:
        raise ValueError(f"--all is every suite, and you named {suite}: leave one of them out.")
    if suite is None and not every:
        raise ValueError("Name a suite, or --all for every one: moegate bench --help lists them.")
    return suite or "all"


def _refuse_options_of_the_cpu(context: typer.Context) -> None:
    sources = {name: context.get_parameter_source(name) for name in _CPU_OPTIONS}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise ValueError(f"--{given[0]} is an option of the CPU's benchmarks: leave it out with --device.")


def _bench_on_cpu(
    suite: str, threads: str, quick: bool, output: Path | None, only: str, without: str, resume: bool, rounds: int
) -> None:
    from moegate.bench.machine import checkout
    from moegate.bench.running import Options
    from moegate.bench.timing import Effort
    from moegate.lab.sweep import parse_integers, parse_list

    numbers = parse_integers("--threads", parse_list(threads))
    if not numbers:
        raise ValueError("--threads names no number of threads: write one, such as --threads 1,2.")
    clone = checkout()
    # A quick look must not take the place of what was measured with care.
    folder = output or (clone / "benchmarks" / "results" if clone and not quick else Path("moegate-bench"))
    console = Console()
    chosen = _with_cases(tuple(SUITES) if suite == "all" else (suite,), quick=quick, only=_texts(only))
    if suite == "all":
        flags = [flag for flag, given in (("--quick", quick), ("--resume", resume)) if given]
        values = {"--threads": threads, "--output": folder, "--only": only, "--without": without, "--rounds": rounds}
        run_each(chosen, [*flags, *(f"{name}={value}" for name, value in values.items())], console)
        return
    effort = Effort(rounds=3, round_seconds=0.002, variant_seconds=0.02) if quick else Effort(rounds=rounds)
    options = Options(_usable(numbers, console), quick, _texts(only), _texts(without), resume, effort)
    run_one(suite, options, folder, console)


def _with_cases(names: Sequence[str], *, quick: bool, only: tuple[str, ...]) -> list[str]:
    from moegate.bench.running import chosen_entries

    suites = [load_suite(name) for name in names]
    found = [suite.name for suite in suites if chosen_entries(suite, quick=quick, only=only)]
    if not found:
        keys = [entry.key for entry in chosen_entries(suites[0], quick=quick, only=())]
        raise ValueError(
            f"No case has {' or '.join(map(repr, only))} in its name; {suites[0].name} has {'; '.join(keys)}."
        )
    return found


def _usable(numbers: tuple[int, ...], console: Console) -> tuple[int, ...]:
    from moegate.cli.machine_facts import usable_cores

    cores = usable_cores()
    usable = tuple(dict.fromkeys(min(number, cores) for number in numbers))
    if usable != numbers:
        console.print(f"This process may use {cores} cores; measuring with {', '.join(map(str, usable))} threads.")
    return usable


def _texts(listed: str) -> tuple[str, ...]:
    return tuple(text.strip() for text in listed.split(",") if text.strip())


def run_each(names: Sequence[str], options: Sequence[str], console: Console) -> None:
    """Run suites one after the other, each in a process of its own.

    Two libraries of a peer define the same operators, so that one process can't load both; and no suite inherits what
    another has left in caches.

    Raises:
        typer.Exit: a suite was interrupted, or failed.
    """
    worst = 0
    for name in names:
        console.rule(name)
        process = subprocess.Popen([sys.executable, "-m", "moegate", "bench", name, *options])
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the suite got it as well, and prints what it has
            code = process.wait()
        if code in (_INTERRUPTED, -2):
            raise typer.Exit(_INTERRUPTED)
        worst = max(worst, code)
    if worst:
        raise typer.Exit(worst)


def run_one(name: str, options: Any, folder: Path, console: Console) -> None:
    """Run a suite, print its tables, write table and picture; on Ctrl-C do so with what there is.

    Raises:
        typer.Exit: it was interrupted, or a result of moegate itself is wrong.
    """
    from moegate.bench.progress import make_progress
    from moegate.bench.running import chosen_entries, run_suite

    suite = load_suite(name)
    folder.mkdir(parents=True, exist_ok=True)  # better now than when the first case is measured
    total = len(chosen_entries(suite, quick=options.quick, only=options.only)) * len(options.threads)
    rows: list[dict[str, Any]] = []
    interrupted = False
    before = torch.get_num_threads()
    try:
        limits = measure_machine(options, console)
        with make_progress(console, total) as progress:
            run_suite(suite, options, folder, limits=limits, progress=progress, rows=rows)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        torch.set_num_threads(before)
    if rows:
        report(suite, rows, folder, console)
    if interrupted:
        text = "Stopped. What was measured is kept; the same command with --resume measures the rest."
        console.print(text, soft_wrap=True)
        raise typer.Exit(_INTERRUPTED)
    if any("trouble" in entry for row in rows for entry in row["variants"].values() if entry["ours"]):
        raise typer.Exit(1)


def measure_machine(options: Any, console: Console) -> dict[int, Any]:
    """Measure the machine's peaks for each number of threads, and warn when other programs use it."""
    from moegate.bench.limits import measure_limits
    from moegate.bench.machine import BUSY_CORES, Bystanders

    bystanders, found = Bystanders(), {}
    with console.status("measuring what this machine can do"):
        best = None
        for number in sorted(options.threads):
            torch.set_num_threads(number)
            measured = measure_limits(quick=options.quick)
            best = measured if best is None else measured.at_least(best)
            found[number] = best
    others = bystanders.cores() or 0.0
    if others > BUSY_CORES:
        console.print(
            f"[yellow]Other programs use {others:.1f} cores: expect worse numbers than on a quiet machine.[/]"
        )
    return found


def report(suite: Any, rows: Sequence[dict[str, Any]], folder: Path, console: Console) -> None:
    """Print tables and sentences, write them as Markdown, draw the picture, and say where everything is."""
    from moegate.bench.markdown import as_markdown
    from moegate.bench.pictures import source

    parts = suite.tell(rows)
    for part in parts:
        if isinstance(part, Table):
            console.print(part)
        else:
            console.print(escape(part), highlight=False, soft_wrap=True)
    table = folder / f"{suite.name}.md"
    table.write_text(as_markdown([*parts, f"Measured on {source(rows[-1])}."]), encoding="utf-8")
    files = [folder / f"{suite.name}.jsonl", table, *suite.draw(rows, folder / suite.name)]
    console.print(f"Results: {', '.join(map(str, files))}", highlight=False, markup=False, soft_wrap=True)
