"""`moegate train`: train and evaluate one model."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moegate.lab.training.balancing import STRATEGIES
from moegate.lab.training.config import TASKS, TrainConfig
from moegate.lab.training.routers import router_names

TASK = "image (5,000 handwritten digits) or text (bytes of several domains)."
EXAMPLES = (
    "moegate train --task image --router topk --top-k 2 -o runs/first",
    "moegate train --task text --router deepseek_v3 --balance sign_bias --steps 300 -o runs/text",
)
"""Calls that end the help of the verb."""


def option(help_text: str, *names: str, panel: str | None = None) -> Any:
    """Return a typer option; settings that aren't given stay None and leave the value to the file or the default."""
    return typer.Option(*names, help=help_text, show_default=False, rich_help_panel=panel)


def default_of(name: str) -> str:
    """Return the default of a setting in words: one value, or one a task; empty for a setting without one.

    Example:
        >>> default_of("top_k"), default_of("num_layers"), default_of("corpus")
        ('2', '2 for image, 4 for text', '')
    """
    values = {task: getattr(TrainConfig.create(task=task), name) for task in TASKS}
    if len(set(values.values())) > 1:
        return ", ".join(f"{value} for {task}" for task, value in values.items())
    value = next(iter(values.values()))
    return "" if value is None else str(value)


def setting(panel: str, name: str, help_text: str) -> Any:
    """Return the option of a setting of `TrainConfig`, its default named in the help."""
    default = default_of(name)
    text = f"{help_text} Default: {default}." if default else help_text
    return option(text, f"--{name.replace('_', '-')}", panel=panel)


model = partial(setting, "Model")
routing = partial(setting, "Router and balance")
training = partial(setting, "Training")
written = partial(setting, "Output")
ROUTERS = f"One of {', '.join(router_names())}."
BALANCES = f"One of {', '.join(STRATEGIES)}; where none can act on the router, none."


def train(
    output: Annotated[Path, option("Folder of the run.", "--output", "-o", panel="Output")],
    config: Annotated[
        Path | None, option("TOML or JSON file of settings; flags override it.", panel="Training")
    ] = None,
    resume: Annotated[bool, option("Continue the run in the folder.", "--resume", panel="Output")] = False,
    logger: Annotated[list[str] | None, option("tensorboard, wandb or mlflow; repeatable.", panel="Output")] = None,
    threads: Annotated[int | None, option("Threads of PyTorch. Default: all cores.", panel="Training")] = None,
    task: Annotated[str | None, option(f"{TASK} Default: image.", panel="Training")] = None,
    router: Annotated[str | None, routing("router", ROUTERS)] = None,
    top_k: Annotated[int | None, routing("top_k", "Experts per token.")] = None,
    balance: Annotated[str | None, routing("balance", BALANCES)] = None,
    balance_coefficient: Annotated[
        float | None, routing("balance_coefficient", "Weight of the balance loss of a layer.")
    ] = None,
    controller_rate: Annotated[
        float | None, routing("controller_rate", "Step of a bias controller. Default: the controller's own.")
    ] = None,
    z_loss: Annotated[float | None, routing("z_loss", "Weight of the router z-loss of a layer.")] = None,
    control: Annotated[
        str | None, routing("control", "none, dense (same active FLOPs) or frozen (random gate).")
    ] = None,
    capacity_factor: Annotated[
        float | None, routing("capacity_factor", "Capacity factor of routers that have one. Default: the router's own.")
    ] = None,
    temperature_start: Annotated[
        float | None, routing("temperature_start", "First temperature of annealed routers.")
    ] = None,
    temperature_end: Annotated[
        float | None, routing("temperature_end", "Last temperature of annealed routers.")
    ] = None,
    seed: Annotated[int | None, training("seed", "Of weights, data order and router noise.")] = None,
    steps: Annotated[int | None, training("steps", "Optimizer steps.")] = None,
    batch_size: Annotated[int | None, training("batch_size", "Images or windows a step.")] = None,
    accumulate: Annotated[int | None, training("accumulate", "Micro-batches a step.")] = None,
    sequence_length: Annotated[int | None, training("sequence_length", "Bytes of a window (text).")] = None,
    learning_rate: Annotated[float | None, training("learning_rate", "Peak learning rate.")] = None,
    warmup_steps: Annotated[int | None, training("warmup_steps", "Steps of linear warm-up.")] = None,
    weight_decay: Annotated[float | None, training("weight_decay", "AdamW's, on matrices.")] = None,
    clip_norm: Annotated[float | None, training("clip_norm", "Largest gradient norm.")] = None,
    num_experts: Annotated[int | None, model("num_experts", "Experts a layer.")] = None,
    num_layers: Annotated[int | None, model("num_layers", "Layers.")] = None,
    num_heads: Annotated[int | None, model("num_heads", "Attention heads (text).")] = None,
    hidden_size: Annotated[int | None, model("hidden_size", "Width of the model.")] = None,
    intermediate_size: Annotated[int | None, model("intermediate_size", "Width of one expert.")] = None,
    log_every: Annotated[int | None, written("log_every", "Steps of a line in metrics.jsonl.")] = None,
    checkpoint_every: Annotated[int | None, written("checkpoint_every", "Steps between checkpoints.")] = None,
    evaluation_windows: Annotated[
        int | None, training("evaluation_windows", "Windows of each domain to evaluate (text).")
    ] = None,
    corpus: Annotated[
        str | None, training("corpus", "Folder with one subfolder a domain (text). Default: the built-in corpus.")
    ] = None,
) -> None:
    """Train one MoE model and write its run folder.

    It holds metrics, checkpoints and the evaluation.
    Ctrl-C writes a checkpoint; --resume goes on to the same numbers.
    """
    settings = {name: value for name, value in locals().items() if value is not None}
    for name in ("output", "config", "resume", "logger", "threads"):
        settings.pop(name, None)
    run_train(output, config, settings, (resume, tuple(logger or ()), threads))


def run_train(
    output: Path, config_file: Path | None, flags: dict[str, Any], how: tuple[bool, tuple[str, ...], int | None]
) -> None:
    """Train with the settings of a file and of flags; print where the results are.

    Raises:
        ValueError: settings that make no sense, or a folder that holds another run.
        typer.Exit: the run was interrupted.
    """
    from moegate.lab.logging import check_services
    from moegate.lab.training.config import read_config_file
    from moegate.lab.training.interruption import Interrupted
    from moegate.lab.training.loop import RunOptions, summary, train
    from moegate.lab.training.progress import make_reporter

    resume, services, threads = how
    from_file = {} if config_file is None else read_config_file(config_file)
    config = TrainConfig.create(**{**from_file, **flags})
    console = Console(soft_wrap=True)
    use_threads(threads)
    reporter = make_reporter(console)
    options = RunOptions(resume, check_services(services), reporter, title=output.name)
    try:
        evaluation = train(config, output, options)
    except Interrupted as stopped:
        reporter.close()
        console.print(f"{stopped} Go on with the same command and --resume.", highlight=False, markup=False)
        raise typer.Exit(130) from None
    finally:
        reporter.close()
    console.print(f"{summary(evaluation)}\nResults in {output}", highlight=False, markup=False)


def use_threads(threads: int | None) -> None:
    """Set PyTorch's number of threads.

    Raises:
        ValueError: fewer than one.
    """
    import torch

    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads {threads} must be at least 1.")
    torch.set_num_threads(threads)
