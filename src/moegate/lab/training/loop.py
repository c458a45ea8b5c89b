"""The training of a run, from an empty folder or a checkpoint to its evaluation."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moegate.lab.logging import SERVICES, JsonlLogger, Logger, keep_until
from moegate.lab.training.building import (
    build_controllers,
    build_model,
    parameter_counts,
    routed_layers,
    seed_everything,
)
from moegate.lab.training.checkpoint import load_checkpoint, save_checkpoint, write_whole
from moegate.lab.training.config import TrainConfig
from moegate.lab.training.evaluation import evaluate, median_speed
from moegate.lab.training.interruption import Interrupted, stop_requests
from moegate.lab.training.progress import Reporter, SilentReporter, StepReport
from moegate.lab.training.routers import largest_k, looks_ahead
from moegate.lab.training.run_directory import SCHEMA, RunDirectory, now, read_json, software, write_json
from moegate.lab.training.state import TrainState, make_optimizer, restore, to_checkpoint
from moegate.lab.training.step import StepLosses, train_step
from moegate.lab.training.task import Task
from moegate.lab.training.tasks import make_task
from moegate.lab.training.window import Window, balance_numbers


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here changes its numbers.

    Attributes:
        resume: continue the run that is in the folder.
        services: loggers beside the run's own, by name.
        reporter: shows the progress.
        title: what the run is called in its description and in the progress.
        extra: more fields for `run.json`, such as the cell of a sweep.
    """

    resume: bool = False
    services: Sequence[str] = ()
    reporter: Reporter = field(default_factory=SilentReporter)
    title: str = ""
    extra: Mapping[str, Any] | None = None


def train(config: TrainConfig, directory: Path, options: RunOptions | None = None) -> dict[str, Any]:
    """Train and evaluate a run in a folder; return its evaluation.

    A finished run is only read. PyTorch's global random state is left as it was.

    Raises:
        ValueError: the folder holds another run, or settings that make no sense.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.

    Example:
        >>> import tempfile
        >>> config = TrainConfig.create(task="image", steps=2, num_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     evaluation = train(config, Path(folder, "run"))
        >>> evaluation["metric"]
        'accuracy'
    """
    options = options or RunOptions()
    run = RunDirectory(directory)
    continued = run.claim(config, resume=options.resume)
    if continued and run.is_done():
        return read_json(run.evaluation)
    with torch.random.fork_rng(devices=[]):
        task = make_task(config)
        if continued:
            run.check_data(task.fingerprint)
            run.warn_of_other_software()
        state = initial_state(config)
        if continued and run.checkpoint.is_file():
            restore(state, load_checkpoint(run.checkpoint))
        write_whole(run.metrics, keep_until(run.metrics, state.step).encode())
        description = _describe(config, state, run, options) | {"data": task.fingerprint}
        write_json(run.description, description)
        evaluation = _train_and_evaluate(config, state, task, run, options)
    write_json(run.evaluation, evaluation, indent=None)
    write_json(run.description, {**description, "finished": now(), "status": "done"})
    return evaluation


def initial_state(config: TrainConfig) -> TrainState:
    """Return the state before the first step; seeds PyTorch's global generator."""
    generator = seed_everything(config.seed)
    model = build_model(config)
    return TrainState(
        model=model,
        optimizer=make_optimizer(model, config.learning_rate, config.weight_decay),
        controllers=build_controllers(config, model),
        generator=generator,
        window=Window.empty(len(routed_layers(model)), config.num_experts),
    )


def _describe(config: TrainConfig, state: TrainState, run: RunDirectory, options: RunOptions) -> dict[str, Any]:
    layers = routed_layers(state.model)
    parameters, active = parameter_counts(config, state.model)
    earlier = run.read_description() if run.description.is_file() else {}
    return {
        "schema": SCHEMA,
        "name": options.title or run.path.name,
        "kind": config.task,
        "config": config.to_dict(),
        "rule": layers[0].rule.to_dict() if layers else None,
        "num_layers": len(layers),
        "num_experts": config.num_experts,
        "top_k": largest_k(config),
        "router": config.router,
        "balance": config.balance,
        "seed": config.seed,
        "parameters": parameters,
        "active_parameters": active,
        "causal": not any(looks_ahead(layer.rule) for layer in layers),
        "software": software(),
        "started": earlier.get("started", now()),
        "finished": None,
        "status": "running",
        **(options.extra or {}),
    }


def _train_and_evaluate(
    config: TrainConfig, state: TrainState, task: Task, run: RunDirectory, options: RunOptions
) -> dict[str, Any]:
    loggers: list[Logger] = [JsonlLogger(run.metrics)]
    try:
        for name in options.services:
            loggers.append(SERVICES[name](run.path, options.title or run.path.name, config.to_dict()))
        _train_steps(config, state, task, run, (options, loggers))
        evaluation = _evaluation(config, state, task)
        for logger in loggers:
            logger.finish(evaluation)
    except BaseException:
        for logger in loggers:
            logger.close()
        raise
    options.reporter.finish(summary(evaluation))
    return evaluation


def _train_steps(
    config: TrainConfig,
    state: TrainState,
    task: Task,
    run: RunDirectory,
    listeners: tuple[RunOptions, Sequence[Logger]],
) -> None:
    options, loggers = listeners
    options.reporter.start(options.title or run.path.name, config.steps, state.step)
    with stop_requests() as stop_wanted:
        while state.step < config.steps:
            started = time.perf_counter()
            batch = task.batch(state.step)
            result = train_step(state, config, batch)
            state.step_seconds.append(time.perf_counter() - started)
            speed = batch.num_tokens / state.step_seconds[-1]
            options.reporter.advance(_report(state, result, speed))
            if state.step % config.log_every == 0 or state.step == config.steps:
                _log(state, speed, loggers)
            stopping = stop_wanted()
            if stopping or state.step % config.checkpoint_every == 0 or state.step == config.steps:
                save_checkpoint(run.checkpoint, to_checkpoint(state, config.to_dict()))
            if stopping and state.step < config.steps:
                raise Interrupted(state.step)


def _report(state: TrainState, result: StepLosses, speed: float) -> StepReport:
    violations = balance_numbers(state.window.load, state.window.selected)["max_violation"]
    return StepReport(state.step, result.task, speed, max(violations, default=None))


def _log(state: TrainState, speed: float, loggers: Sequence[Logger]) -> None:
    record = {
        **state.window.record(),
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "tokens_per_second": speed,
    }
    for logger in loggers:
        logger.log(state.step, record)
    state.window.clear()


def _evaluation(config: TrainConfig, state: TrainState, task: Task) -> dict[str, Any]:
    measured = evaluate(state.model, task, len(routed_layers(state.model)), config.num_experts)
    tokens = config.batch_size * (config.sequence_length if config.task == "text" else 1)
    return {"tokens_per_second": median_speed(state.step_seconds, tokens), **measured}


def summary(evaluation: Mapping[str, Any]) -> str:
    """Return an evaluation in one line.

    Example:
        >>> summary({"metric": "accuracy", "value": 0.95, "tokens_per_second": 1e4, "max_violation": None})
        'accuracy 95.00 %, 10,000 tokens/s'
    """
    value, balance = evaluation["value"], evaluation["max_violation"]
    score = (
        f"accuracy {value:.2%}".replace("%", " %") if evaluation["metric"] == "accuracy" else f"{value:.3f} bits/byte"
    )
    violation = "" if balance is None else f", MaxVio {balance:.2f}"
    return f"{score}, {evaluation['tokens_per_second']:,.0f} tokens/s{violation}"
