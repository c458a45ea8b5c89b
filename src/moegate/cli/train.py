"""`moegate train`: train and evaluate one model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

TASK = "image (5,000 handwritten digits) or text (bytes of several domains)."


def option(help_text: str, *names: str) -> Any:
    """Return a typer option; settings that aren't given stay None and leave the value to the file or the default."""
    return typer.Option(*names, help=help_text, show_default=False)


def train(
    output: Annotated[Path, option("Folder of the run.", "--output", "-o")],
    config: Annotated[Path | None, option("TOML or JSON file of settings; flags override it.")] = None,
    resume: Annotated[bool, option("Continue the run in the folder.", "--resume")] = False,
    logger: Annotated[list[str] | None, option("tensorboard, wandb or mlflow; repeatable.")] = None,
    threads: Annotated[int | None, option("Threads of PyTorch; default: all cores.")] = None,
    task: Annotated[str | None, option(TASK)] = None,
    router: Annotated[str | None, option("Routing strategy, such as topk, switch, deepseek_v3.")] = None,
    top_k: Annotated[int | None, option("Experts per token.", "--top-k")] = None,
    balance: Annotated[str | None, option("none, aux, aux_pooled, sign_bias, quantile, ...")] = None,
    balance_coefficient: Annotated[float | None, option("Weight of the balance loss of a layer.")] = None,
    controller_rate: Annotated[float | None, option("Step of a bias controller.")] = None,
    z_loss: Annotated[float | None, option("Weight of the router z-loss of a layer.", "--z-loss")] = None,
    control: Annotated[str | None, option("none, dense (same active FLOPs) or frozen (random gate).")] = None,
    capacity_factor: Annotated[float | None, option("Capacity factor of routers that have one.")] = None,
    temperature_start: Annotated[float | None, option("First temperature of annealed routers.")] = None,
    temperature_end: Annotated[float | None, option("Last temperature of annealed routers.")] = None,
    seed: Annotated[int | None, option("Of weights, data order and router noise.")] = None,
    steps: Annotated[int | None, option("Optimizer steps.")] = None,
    batch_size: Annotated[int | None, option("Images or windows a step.")] = None,
    accumulate: Annotated[int | None, option("Micro-batches a step.")] = None,
    sequence_length: Annotated[int | None, option("Bytes of a window (text).")] = None,
    learning_rate: Annotated[float | None, option("Peak learning rate.")] = None,
    warmup_steps: Annotated[int | None, option("Steps of linear warm-up.")] = None,
    weight_decay: Annotated[float | None, option("AdamW's, on matrices.")] = None,
    clip_norm: Annotated[float | None, option("Largest gradient norm.")] = None,
    num_experts: Annotated[int | None, option("Experts a layer.")] = None,
    num_layers: Annotated[int | None, option("Layers.")] = None,
    num_heads: Annotated[int | None, option("Attention heads (text).")] = None,
    hidden_size: Annotated[int | None, option("Width of the model.")] = None,
    intermediate_size: Annotated[int | None, option("Width of one expert.")] = None,
    log_every: Annotated[int | None, option("Steps of a line in metrics.jsonl.")] = None,
    checkpoint_every: Annotated[int | None, option("Steps between checkpoints.")] = None,
    evaluation_windows: Annotated[int | None, option("Windows of each domain to evaluate (text).")] = None,
    corpus: Annotated[str | None, option("Folder with one subfolder a domain (text).")] = None,
) -> None:
    """Train one MoE model and write its run folder.

    It holds metrics, checkpoints and the evaluation. Ctrl-C writes a checkpoint; the same command with --resume
    goes on to the same numbers.
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
    from moegate.lab.training.config import TrainConfig, read_config_file
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
        console.print(f"{stopped} Go on with the same command and --resume.", highlight=False)
        raise typer.Exit(130) from None
    finally:
        reporter.close()
    console.print(f"{summary(evaluation)}\nResults in {output}", highlight=False)


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
