"""Mean and 95 % confidence interval over the seeds of each configuration."""

from collections.abc import Iterable

from moegate.lab.sweep.intervals import Estimate, estimate
from moegate.report.records import Evaluation, Row, Run


def summarize(runs: Iterable[Run]) -> tuple[Row, ...]:
    """One row for each configuration with a finished run, in the order of the runs.

    Raises:
        ValueError: the runs of a configuration measure different metrics.
    """
    settings: dict[object, list[tuple[Run, Evaluation]]] = {}
    for run in runs:
        if run.finished and run.evaluation is not None:
            settings.setdefault(run.key, []).append((run, run.evaluation))
    return tuple(_row(seeds) for seeds in settings.values())


def _row(seeds: list[tuple[Run, Evaluation]]) -> Row:
    run = seeds[0][0]
    evaluations = [evaluation for _, evaluation in seeds]
    if len({evaluation.metric for evaluation in evaluations}) > 1:
        raise ValueError(f"The runs like {run.directory} measure different metrics; report on them separately.")
    # One seed that diverged makes the mean meaningless: it is not averaged away.
    diverged = any(evaluation.value is None for evaluation in evaluations)
    value = Estimate(float("nan"), None) if diverged else _over_seeds(evaluations, "value")
    speed = _over_seeds(evaluations, "tokens_per_second")
    return Row(
        kind=run.kind,
        router=run.router,
        top_k=run.top_k,
        balance=run.balance,
        control=run.control,
        causal=all(seed.causal for seed, _ in seeds),
        seeds=len(seeds),
        metric=evaluations[0].metric,
        mean=value.mean if value else float("nan"),
        ci95=value.ci if value else None,
        tokens_per_second=speed.mean if speed else None,
        tokens_per_second_ci95=speed.ci if speed else None,
        inference_tokens_per_second=_mean(evaluations, "inference_tokens_per_second"),
        utilization=_mean(evaluations, "utilization"),
        max_violation=_mean(evaluations, "max_violation"),
        drop_rate=_mean(evaluations, "drop_rate"),
        parameters=run.parameters,
        active_parameters=run.active_parameters,
    )


def _over_seeds(evaluations: list[Evaluation], name: str) -> Estimate | None:
    values = [value for evaluation in evaluations if (value := getattr(evaluation, name)) is not None]
    return estimate(values) if values else None


def _mean(evaluations: list[Evaluation], name: str) -> float | None:
    found = _over_seeds(evaluations, name)
    return found.mean if found else None
