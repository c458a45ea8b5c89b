"""`moegate sweep`: compare routers, K and balance over seeds, with controls."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moegate.cli.train import TASK, option, use_threads


def sweep(
    context: typer.Context,
    output: Annotated[Path | None, option("Folder of the sweep.", "--output", "-o")] = None,
    task: Annotated[str, typer.Option(help=TASK)] = "image",
    top_k: Annotated[str, typer.Option("--top-k", help="Values of K.")] = "1,2,4,8",
    router: Annotated[str, typer.Option(help="Routing strategies.")] = "topk",
    balance: Annotated[str, typer.Option(help="Balance strategies.")] = "aux",
    seeds: Annotated[int, typer.Option(help="Runs of each variant.")] = 3,
    controls: Annotated[str, typer.Option(help="dense, frozen, both, or none.")] = "none",
    steps: Annotated[int | None, option("Optimizer steps of each run.")] = None,
    config: Annotated[Path | None, option("TOML or JSON file of settings that all runs share.")] = None,
    shared: Annotated[list[str] | None, option("A setting that all runs share, NAME=VALUE.", "--set")] = None,
    at_inference: Annotated[
        list[Path] | None,
        option("Train nothing: evaluate this finished run with each K; repeat it for runs of other seeds."),
    ] = None,
    resume: Annotated[bool, option("Continue the sweep in the folder.", "--resume")] = False,
    threads: Annotated[int | None, option("Threads of PyTorch; default: all cores.")] = None,
) -> None:
    """Compare routers, values of K and balancing methods over several seeds.

    Every combination of the axes is trained; the table shows mean ± 95 % interval over seeds and goes into
    table.json and table.csv. An interrupted sweep goes on with the same command and --resume: finished runs are
    kept, failed ones tried again.
    """
    from moegate.lab.sweep import Axes, SweepPlan, parse_controls, parse_integers, parse_list, parse_settings
    from moegate.lab.training.config import read_config_file

    base = {
        **({} if config is None else read_config_file(config)),
        **parse_settings(shared or ()),
        **({} if steps is None else {"steps": steps}),
    }
    use_threads(threads)
    k_values = parse_integers("--top-k", parse_list(top_k))
    if at_inference:
        _refuse_ignored(context)
        evaluate_and_print(at_inference, k_values, console=Console())
        return
    if output is None:
        raise ValueError("A sweep needs a folder for its runs: --output DIR.")
    axes = Axes(
        top_k=k_values,
        router=parse_list(router),
        balance=parse_list(balance),
        seeds=seeds,
        controls=parse_controls(controls),
    )
    command = shlex.join(["moegate", *sys.argv[1:]])
    run_and_print(SweepPlan(task, axes, base, command), output, resume=resume, console=Console())


READ_AT_INFERENCE = {"at_inference", "top_k", "threads"}


def _refuse_ignored(context: typer.Context) -> None:
    """Refuse the flags of a training sweep beside --at-inference, which trains nothing."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in READ_AT_INFERENCE
        and getattr(context.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise ValueError(f"--at-inference trains nothing and writes nothing; leave out {', '.join(given)}.")


def evaluate_and_print(runs: list[Path], top_k: tuple[int, ...], *, console: Console) -> None:
    """Evaluate finished runs with each K and print the table.

    Raises:
        ValueError: runs that have no K or don't belong together.
    """
    from moegate.lab.sweep.inference import print_inference_table, sweep_at_inference

    print_inference_table(console, sweep_at_inference(runs, top_k))


def run_and_print(plan: Any, output: Path, *, resume: bool, console: Console) -> None:
    """Run a sweep with progress and print its table; on Ctrl-C print what there is and how to go on.

    Raises:
        typer.Exit: the sweep was interrupted, or a cell failed.
    """
    from moegate.lab.sweep import failed_cells, finished_rows, print_table, run_sweep
    from moegate.lab.training.interruption import Interrupted
    from moegate.lab.training.progress import make_reporter

    for sentence in plan.grid().skipped:
        console.print(f"Left out: {sentence}", highlight=False, markup=False)
    reporter = make_reporter(console)
    try:
        rows = run_sweep(plan, output, resume=resume, reporter=reporter)
    except (Interrupted, KeyboardInterrupt):
        reporter.close()
        print_table(console, finished_rows(plan, output), f"{output.name}, so far")
        _print_failed(failed_cells(output), console)
        console.print("Stopped. Go on with the same command and --resume.")
        raise typer.Exit(130) from None
    finally:
        reporter.close()
    print_table(console, rows, output.name)
    console.print(f"Results in {output}", highlight=False, soft_wrap=True)
    failed = failed_cells(output)
    _print_failed(failed, console)
    if failed:
        console.print("The same command with --resume tries what failed again.")
        raise typer.Exit(1)


def _print_failed(failed: Mapping[str, str], console: Console) -> None:
    for cell, problem in failed.items():
        console.print(f"Failed: {cell}: {problem}", highlight=False, markup=False, soft_wrap=True)
