"""Everything the page shows, as one JSON value."""

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from moegate.report.detail import LEVELS, Detail
from moegate.report.findings import LOWER_IS_BETTER, findings
from moegate.report.inside import Texts, inside
from moegate.report.records import Row, Run, Sweep
from moegate.report.wording import describe_rule, describe_software, label, run_label

RESULTS = (
    "metric", "value", "loss", "tokens_per_second", "inference_tokens_per_second", "utilization",
    "max_violation", "drop_rate",
)  # fmt: skip


def build_content(sweeps: Sequence[Sweep], detail: Detail) -> dict[str, Any]:
    """The page's data at one level of detail."""
    texts = Texts()
    runs = [(number, run) for number, sweep in enumerate(sweeps) for run in sweep.runs]
    shown = _first_seeds(runs) if not detail.every_seed else runs
    return {
        "title": " and ".join(sweep.name for sweep in sweeps[:2]) + (" …" if len(sweeps) > 2 else ""),
        "version": package_version(),
        "generated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sweeps": [_sweep(sweep) for sweep in sweeps],
        "runs": [_run(number, run) | inside(run, detail, texts) for number, run in shown],
        "texts": texts.items,
        "trimmed": _trimmed(detail, shown, runs, texts),
    }


def package_version() -> str:
    """The installed version of moegate, as pages state it."""
    try:
        return version("moegate")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _first_seeds(runs: list[tuple[int, Run]]) -> list[tuple[int, Run]]:
    """One run of each configuration, a finished one where there is one."""
    first: dict[Any, tuple[int, Run]] = {}
    for number, run in sorted(runs, key=lambda item: (item[0], not item[1].finished)):
        first.setdefault((number, run.key), (number, run))
    return list(first.values())


def _trimmed(detail: Detail, shown: list[tuple[int, Run]], runs: list[tuple[int, Run]], texts: Texts) -> list[str]:
    """What was left out to keep the file small."""
    sentences = []
    if len(shown) < len(runs):
        sentences.append(f"the inside of {len(shown)} of {len(runs)} runs is shown, one a configuration")
    if any(run.num_experts > detail.pair_experts for _, run in shown):
        sentences.append(f"co-activation shows the {detail.pair_experts} busiest experts of each layer")
    if texts.trimmed:
        sentences.append("token views show the beginning of each text")
    if detail is not LEVELS[0]:
        sentences.append(f"training is shown in at most {detail.windows} time windows")
    return sentences


def _sweep(sweep: Sweep) -> dict[str, Any]:
    started = [run.started for run in sweep.runs]
    ended = [run.ended for run in sweep.runs if run.ended]
    metrics = [row.metric for row in sweep.rows]
    return {
        "name": sweep.name,
        "kind": sweep.kind,
        "command": sweep.command,
        "axes": {name: values for name, values in sweep.axes.items() if values},
        "software": describe_software(sweep.software or (sweep.runs[0].software if sweep.runs else {})),
        "finished": sweep.finished,
        "started": min(started, default=""),
        "ended": max(ended, default="") if sweep.finished else "",
        "num_runs": len(sweep.runs),
        "rules": _rules(sweep.runs),
        "skipped": sweep.skipped,
        "metric": metrics[0] if metrics else None,
        "lower_is_better": bool(metrics) and metrics[0] in LOWER_IS_BETTER,
        "findings": findings(sweep),
        "rows": [_row(row) for row in sweep.rows],
    }


def _rules(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The rule of each router, in words, for all its values of K at once."""
    rules: dict[str, str] = {}
    for run in runs:
        if run.rule and run.control != "dense":
            rules.setdefault(run.router, describe_rule(run.rule, top_k=None if run.top_k is None else "K"))
    return [{"router": router, "words": words} for router, words in rules.items()]


def _row(row: Row) -> dict[str, Any]:
    return {
        "key": list(row.key),
        "label": label(row),
        "router": row.router,
        "top_k": row.top_k,
        "balance": row.balance,
        "control": row.control,
        "seeds": row.seeds,
        "mean": row.mean if math.isfinite(row.mean) else None,
        "ci95": row.ci95,
        "tokens_per_second": row.tokens_per_second,
        "tokens_per_second_ci95": row.tokens_per_second_ci95,
        "inference_tokens_per_second": row.inference_tokens_per_second,
        "utilization": row.utilization,
        "max_violation": row.max_violation,
        "drop_rate": row.drop_rate,
        "parameters": row.parameters,
        "active_parameters": row.active_parameters,
        "comparable": row.causal,
    }


def _run(sweep: int, run: Run) -> dict[str, Any]:
    return {
        "sweep": sweep,
        "key": list(run.key),
        "label": run_label(run),
        "name": run.name,
        "kind": run.kind,
        "comparable": run.causal,
        "finished": run.finished,
        "started": run.started,
        "ended": run.ended,
        "software": describe_software(run.software),
        "rule": describe_rule(run.rule),
        "steps": run.config.get("steps") if isinstance(run.config.get("steps"), int) else None,
        "num_layers": run.num_layers,
        "num_experts": run.num_experts,
        "top_k": run.top_k,
        "parameters": run.parameters,
        "active_parameters": run.active_parameters,
        "result": None if run.evaluation is None else {name: getattr(run.evaluation, name) for name in RESULTS},
    }
