"""Run and sweep directories from disk, checked. An unfinished run is data; a damaged file is an error."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from moegate.report.history import read_history
from moegate.report.pictures import as_png_base64
from moegate.report.reading import Array, Record, read_object
from moegate.report.records import METRICS, Evaluation, History, Row, Run, Sweep, TokenView
from moegate.report.summary import summarize

SCHEMA = 1


def load(directories: Iterable[Path]) -> tuple[Sweep, ...]:
    """Reads run and sweep directories; the single runs come back as one nameless sweep, last.

    Raises:
        ValueError: nothing was passed, a directory is neither a run nor a sweep, or a file is damaged.
    """
    sweeps: list[Sweep] = []
    runs: list[Run] = []
    for directory in dict.fromkeys(directories):
        if (directory / "sweep.json").exists():
            sweeps.append(load_sweep(directory))
        elif (directory / "run.json").exists():
            runs.append(load_run(directory))
        elif directory.exists():
            raise ValueError(f"{directory} has neither run.json nor sweep.json: it is no run or sweep directory.")
        else:
            raise ValueError(f"{directory} does not exist.")
    for kind in sorted({run.kind for run in runs}):
        sweeps.append(_gather([run for run in runs if run.kind == kind]))
    if not sweeps:
        raise ValueError("No run or sweep directory was passed; pass at least one.")
    return tuple(sweeps)


def _gather(runs: list[Run]) -> Sweep:
    return Sweep(
        name=runs[0].name if len(runs) == 1 else f"{len(runs)} {runs[0].kind} runs",
        kind=runs[0].kind,
        command="",
        axes={},
        software=runs[0].software,
        finished=all(run.finished for run in runs),
        runs=tuple(runs),
        rows=summarize(runs),
    )


def load_sweep(directory: Path) -> Sweep:
    """Reads `sweep.json`, every cell, and `table.json` once the sweep has finished."""
    manifest = read_object(directory / "sweep.json")
    _check_schema(manifest)
    cells = sorted(path for path in (directory / "cells").glob("*") if path.is_dir())
    started = [cell for cell in cells if (cell / "run.json").exists()]
    finished = manifest.flag("finished")
    if finished and not cells:
        raise ValueError(f"{directory / 'cells'} holds no cells although sweep.json says the sweep has finished.")
    if finished and len(started) < len(cells):
        missing = next(cell for cell in cells if cell not in started)
        raise ValueError(f"{missing / 'run.json'} is missing although sweep.json says the sweep has finished.")
    runs = tuple(load_run(cell) for cell in started)
    kind = manifest.choice("kind", ("image", "text"))
    return Sweep(
        name=manifest.text("name"),
        kind=kind,
        command=manifest.text("command", ""),
        axes=manifest.objects("axes"),
        software=manifest.objects("software"),
        finished=finished,
        runs=runs,
        rows=_table(directory, kind) if finished else summarize(runs),
        waiting=tuple(cell.name for cell in cells if cell not in started),
        skipped=tuple(map(str, manifest.items("skipped"))),
    )


def _table(directory: Path, kind: str) -> tuple[Row, ...]:
    table = read_object(directory / "table.json")
    rows = [
        Record(fields, f"{table.place}, row {number}") if isinstance(fields, dict) else None
        for number, fields in enumerate(table.items("rows"), start=1)
    ]
    if None in rows or not rows:
        raise table.wrong("rows", "a list of objects, one a configuration")
    return tuple(_row(record, kind) for record in rows if record is not None)


def _row(record: Record, kind: str) -> Row:
    mean = record.required_number("mean")
    return Row(
        kind=kind,
        router=record.text("router"),
        top_k=_top_k(record),
        balance=record.text("balance"),
        control=_control(record),
        seeds=record.whole("seeds"),
        metric=record.choice("metric", METRICS),
        mean=float("nan") if mean is None else mean,
        ci95=record.number("ci95"),
        tokens_per_second=record.number("tokens_per_second"),
        tokens_per_second_ci95=record.number("tokens_per_second_ci95"),
        inference_tokens_per_second=record.number("inference_tokens_per_second"),
        utilization=record.number("utilization"),
        max_violation=record.number("max_violation"),
        drop_rate=record.number("drop_rate"),
        parameters=record.whole("parameters", 0),
        active_parameters=record.whole("active_parameters", 0),
        causal=record.flag("causal", True),
    )


def load_run(directory: Path) -> Run:
    """Reads one run directory."""
    manifest = read_object(directory / "run.json")
    _check_schema(manifest)
    finished = manifest.choice("status", ("running", "done")) == "done"
    config = manifest.objects("config")
    cell = Record(manifest.objects("cell"), f"{manifest.place}, 'cell'")
    run = Run(
        directory=directory,
        name=manifest.text("name"),
        kind=manifest.choice("kind", ("image", "text")),
        router=manifest.text("router"),
        balance=manifest.text("balance"),
        control=_control(cell if "control" in cell.fields else Record(config, f"{manifest.place}, 'config'")),
        top_k=_top_k(cell if "top_k" in cell.fields else manifest),
        seed=manifest.whole("seed"),
        num_layers=manifest.whole("num_layers"),
        num_experts=manifest.whole("num_experts"),
        parameters=manifest.whole("parameters"),
        active_parameters=manifest.whole("active_parameters"),
        causal=manifest.flag("causal"),
        finished=finished,
        started=manifest.text("started"),
        ended=manifest.text("finished", ""),
        software=manifest.objects("software"),
        config=config,
        rule=manifest.objects("rule"),
        history=History(),
        evaluation=None,
    )
    return replace(run, history=read_history(run), evaluation=_evaluation(run))


def _top_k(record: Record) -> int | None:
    """K of a configuration; None for a router without a fixed K."""
    return None if record.fields.get("top_k") is None else record.whole("top_k")


def _control(record: Record) -> str | None:
    control = record.text("control", "none")
    return None if control == "none" else control


def _check_schema(manifest: Record) -> None:
    if manifest.fields.get("schema") != SCHEMA:
        raise manifest.wrong("schema", f"{SCHEMA}, the only schema this version of moegate reads")


def _evaluation(run: Run) -> Evaluation | None:
    path = run.directory / "evaluation.json"
    if not path.exists():
        if run.finished:
            raise ValueError(f"{path} is missing although run.json says the run is done.")
        return None
    record = read_object(path)
    layers, experts = run.num_layers, run.num_experts
    domains = record.items("domains")
    if not all(isinstance(domain, str) for domain in domains):
        raise record.wrong("domains", "a list of names")
    per_domain = Record(record.objects("per_domain"), f"{record.place}, 'per_domain'")
    return Evaluation(
        metric=record.choice("metric", METRICS),
        value=record.required_number("value"),
        loss=record.number("loss"),
        tokens_per_second=record.number("tokens_per_second"),
        inference_tokens_per_second=record.number("inference_tokens_per_second"),
        utilization=record.number("utilization"),
        max_violation=record.number("max_violation"),
        drop_rate=record.number("drop_rate"),
        load_LE=record.counts("load", (layers, experts)),
        domains=tuple(domains),
        per_domain={domain: per_domain.number(domain) for domain in domains},
        domain_load_LNE=record.counts("domain_load", (layers, len(domains), experts)),
        coactivation_LEE=record.counts("coactivation", (layers, experts, experts)),
        token_views=tuple(_token_views(record, run)),
    )


def _token_views(record: Record, run: Run) -> Iterable[TokenView]:
    for number, fields in enumerate(record.items("token_view"), start=1):
        if not isinstance(fields, dict):
            raise record.wrong("token_view", "a list of objects")
        view = Record(fields, f"{record.place}, token view {number}")
        tokens = view.items("tokens")
        if not all(isinstance(token, str) for token in tokens):
            raise view.wrong("tokens", "a list of strings")
        experts_LTK, weights_LTK = _slots(view, run.num_layers, len(tokens))
        if experts_LTK is None or weights_LTK is None:
            continue
        if experts_LTK.min() < -1 or experts_LTK.max() >= run.num_experts:
            raise view.wrong("experts", f"expert numbers from 0 to {run.num_experts - 1}, or -1 for none")
        pictures = tuple(as_png_base64(pixels, view.place) for pixels in view.items("pixels"))
        if pictures and len(pictures) != len(tokens):
            raise ValueError(f"{view.place}: {len(pictures)} pictures for {len(tokens)} tokens.")
        yield TokenView(view.text("domain", ""), tuple(tokens), experts_LTK, weights_LTK, pictures)


def _slots(view: Record, layers: int, tokens: int) -> tuple[Array | None, Array | None]:
    """Experts and weights; the number of slots is read from the first token of each layer."""
    experts = view.items("experts")
    if not (layers and tokens and experts):
        return None, None
    try:
        widths = [len(layer[0]) for layer in experts]
    except (TypeError, IndexError, KeyError):
        raise view.wrong("experts", f"{layers} layers of {tokens} tokens of experts") from None
    if len(set(widths)) == 1:
        shape = (layers, tokens, widths[0])
        return view.grid("experts", shape), view.grid("weights", shape)
    padded = {name: _padded(view.items(name), max(widths), fill) for name, fill in (("experts", -1), ("weights", 0))}
    rectangular = Record(padded, view.place)
    shape = (layers, tokens, max(widths))
    return rectangular.grid("experts", shape), rectangular.grid("weights", shape)


def _padded(layers: list[Any], width: int, fill: int) -> list[Any]:
    """Layers may differ in their number of slots (expert choice, top-p): fill up to the widest."""
    return [[[*slots, *[fill] * (width - len(slots))] for slots in tokens] for tokens in layers]
