"""`moegate demo`: in some minutes from nothing to the K table and a page that shows what the router did."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from moegate.cli.sweep import run_and_print

if TYPE_CHECKING:
    from moegate.lab.sweep import SweepPlan

LANGUAGE_MODEL = {"num_layers": 2, "batch_size": 4, "sequence_length": 128}


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the demo.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="Runs of each variant in the K table.")] = 3,
    image_steps: Annotated[int, typer.Option(help="Optimizer steps of each image model.")] = 600,
    text_steps: Annotated[int, typer.Option(help="Optimizer steps of the language model.")] = 1200,
) -> None:
    """Train on real data, compare K = 1, 2, 4, 8, and open a page that shows what the router did.

    Some four minutes on two cores. Called again, it goes on where it was stopped.
    """
    from moegate.report import write_report

    console = Console()
    plan = digits_plan(image_steps, seeds)
    plan.grid()  # refuses numbers that make no sense before the language model takes its minutes
    with one_thread():
        _say(console, "1/3  A language model, 2 of 8 experts a byte, on prose in several languages and on code")
        train_language_model(output / "language_model", text_steps, console)
        _say(console, "2/3  Digit classifiers with K = 1, 2, 4, 8 of 8 experts, beside dense and frozen-gate controls")
        sweep_digits(output / "k_sweep", plan, console)
    page = write_report([output / "k_sweep", output / "language_model"], output / "report.html")
    _say(console, f"3/3  The page: open {page.resolve()} in a browser.")


def train_language_model(directory: Path, steps: int, console: Console) -> None:
    """Train the demo's language model, or what is left of it.

    Raises:
        ValueError: the folder holds a run with other settings.
        typer.Exit: the run was interrupted.
    """
    from moegate.lab.training import Interrupted, RunOptions, TrainConfig, train
    from moegate.lab.training.progress import make_reporter

    config = TrainConfig.create(task="text", steps=steps, **LANGUAGE_MODEL)
    reporter = make_reporter(console)
    try:
        train(config, directory, RunOptions(resume=True, reporter=reporter, title="language model K=2"))
    except (Interrupted, KeyboardInterrupt):
        reporter.close()
        _say(console, "Stopped. Go on with the same command.")
        raise typer.Exit(130) from None
    finally:
        reporter.close()


def digits_plan(steps: int, seeds: int) -> "SweepPlan":
    """Return the K sweep of the demo.

    Raises:
        ValueError: no seeds.

    Example:
        >>> len(digits_plan(steps=600, seeds=1).grid().cells)
        12
    """
    from moegate.lab.sweep import Axes, SweepPlan

    axes = Axes((1, 2, 4, 8), ("topk",), ("aux",), seeds, ("dense", "frozen"))
    return SweepPlan("image", axes, {"steps": steps}, command="moegate demo")


def sweep_digits(directory: Path, plan: "SweepPlan", console: Console) -> None:
    """Train the K sweep of the demo, or what is left of it, and print its table.

    Raises:
        ValueError: the folder holds a sweep with other settings.
        typer.Exit: the sweep was interrupted.
    """
    run_and_print(plan, directory, resume=True, console=console)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread: models this small gain little from more, and lose much on a busy machine.

    Example:
        >>> import torch
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
