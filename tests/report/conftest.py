"""Run and sweep directories for the report, written as the trainer writes them, and pages made of them."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moegate.report import write_report

sys.path.append(str(Path(__file__).parent))

TEXTS = {
    "english": "It is a truth universally acknowledged, that a router in possession of many experts\nmust balance.\n",
    "python": "def route(logits, top_k):\n    return logits.topk(top_k).indices\n\nprint(route(x, 2))\n",
    "русский": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива.\n",
    "日本語": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n",
}
SOFTWARE = {
    "moegate": "0.1.0",
    "torch": "2.13.0",
    "python": "3.11.7",
    "platform": "Linux",
    "processor": "AMD EPYC",
    "threads": 2,
}


@dataclass(frozen=True)
class RunSpec:
    """What a synthetic run is; the numbers follow from it."""

    kind: str = "text"
    router: str = "topk"
    top_k: int = 2
    balance: str = "aux"
    control: str | None = None
    seed: int = 0
    layers: int = 3
    experts: int = 8
    log_steps: int = 24
    value: float | None = None
    causal: bool = True
    drop_rate: float = 0.0
    finished: bool = True
    tokens: int = 120
    name: str = ""
    domains: tuple[str, ...] = tuple(TEXTS)
    texts: dict[str, list[str]] = field(default_factory=lambda: {name: list(text) for name, text in TEXTS.items()})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def routing_of(spec: RunSpec, rng: np.random.Generator) -> np.ndarray:
    """Probabilities [L, N, E] with which each domain picks its experts: specialised, and uneven if not balanced."""
    sharpness = 0.5 if spec.balance == "none" else 2.0
    return rng.dirichlet(np.full(spec.experts, sharpness), size=(spec.layers, len(spec.domains)))


def pick(probabilities: np.ndarray, count: int, top_k: int, rng: np.random.Generator) -> np.ndarray:
    """`top_k` distinct experts for each of `count` tokens, by Gumbel-top-k."""
    noisy = np.log(probabilities + 1e-9) + rng.gumbel(size=(count, len(probabilities)))
    return np.argsort(-noisy, axis=1)[:, :top_k]


def write_run(directory: Path, spec: RunSpec) -> Path:
    """Write a run directory; an unfinished run has no evaluation and half a last line."""
    rng = np.random.default_rng(spec.seed + 17 * spec.top_k)
    choose = routing_of(spec, rng)
    manifest = {
        "schema": 1,
        "name": spec.name or directory.name,
        "kind": spec.kind,
        "config": {"steps": 10 * spec.log_steps, "control": spec.control or "none"},
        "rule": {
            "score": {"kind": "softmax"},
            "selection": {"kind": "top_k", "top_k": spec.top_k},
            "weighting": {"kind": "weighting", "renormalize": True, "scale": 1.0, "apply_to": "output"},
        },
        "num_layers": spec.layers,
        "num_experts": spec.experts,
        "top_k": spec.top_k,
        "router": spec.router,
        "balance": spec.balance,
        "seed": spec.seed,
        "parameters": 1_870_000,
        "active_parameters": 400_000 + 210_000 * spec.top_k,
        "causal": spec.causal,
        "software": SOFTWARE,
        "started": "2026-11-21T20:00:00+00:00",
        "finished": "2026-11-21T20:04:00+00:00" if spec.finished else None,
        "status": "done" if spec.finished else "running",
        "cell": {
            "router": spec.router,
            "top_k": spec.top_k,
            "balance": spec.balance,
            "seed": spec.seed,
            "control": spec.control,
        },
    }
    write_json(directory / "run.json", manifest)
    lines = [json.dumps(log_line(spec, choose, step, rng)) for step in range(spec.log_steps)]
    text = "\n".join(lines) + "\n"
    (directory / "metrics.jsonl").write_text(text if spec.finished else text[:-40], encoding="utf-8")
    if spec.finished:
        write_json(directory / "evaluation.json", evaluation(spec, choose, rng))
    return directory


def log_line(spec: RunSpec, choose: np.ndarray, step: int, rng: np.random.Generator) -> dict[str, Any]:
    progress = step / max(1, spec.log_steps - 1)
    even = np.full(spec.experts, 1 / spec.experts)
    share = (1 - progress) * choose.mean(axis=1) + progress * (even if spec.balance != "none" else choose.mean(axis=1))
    load = np.stack([rng.multinomial(4096 * spec.top_k, layer / layer.sum()) for layer in share])
    return {
        "step": 10 * (step + 1),
        "loss": 2.2 * np.exp(-3 * progress) + 1.4 + 0.02 * rng.standard_normal(),
        "balance_loss": 1.02,
        "learning_rate": 1e-3,
        "tokens_per_second": 9000.0 / spec.top_k,
        "max_violation": (load.max(axis=1) / load.mean(axis=1) - 1).tolist(),
        "utilization": (load > 0).mean(axis=1).tolist(),
        "drop_rate": [spec.drop_rate] * spec.layers,
        "load": load.tolist(),
    }


def evaluation(spec: RunSpec, choose: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    metric = "accuracy" if spec.kind == "image" else "bits_per_byte"
    base = 0.93 + 0.01 * np.log2(spec.top_k) if spec.kind == "image" else 2.3 - 0.04 * np.log2(spec.top_k)
    value = float(base + 0.004 * rng.standard_normal()) if spec.value is None else spec.value
    domain_load = np.stack(
        [[rng.multinomial(2048 * spec.top_k, domain / domain.sum()) for domain in layer] for layer in choose]
    )
    load = domain_load.sum(axis=1)
    return {
        "metric": metric,
        "value": value,
        "loss": 1.5,
        "tokens_per_second": 9000.0 / spec.top_k + 40 * rng.standard_normal(),
        "inference_tokens_per_second": 31000.0 / spec.top_k,
        "utilization": 0.93,
        "max_violation": float((load.max(axis=1) / load.mean(axis=1) - 1).mean()),
        "max_violation_per_layer": (load.max(axis=1) / load.mean(axis=1) - 1).tolist(),
        "drop_rate": spec.drop_rate,
        "load": load.tolist(),
        "domains": list(spec.domains),
        "per_domain": {name: value + 0.1 * number for number, name in enumerate(spec.domains)},
        "domain_load": domain_load.tolist(),
        "coactivation": coactivation(spec, choose, rng).tolist(),
        "token_view": token_views(spec, choose, rng),
    }


def coactivation(spec: RunSpec, choose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pairs = np.zeros((spec.layers, spec.experts, spec.experts), dtype=int)
    for layer in range(spec.layers):
        for experts in pick(choose[layer].mean(axis=0), 600, spec.top_k, rng):
            pairs[layer][np.ix_(experts, experts)] += 1
    return pairs


def token_views(spec: RunSpec, choose: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    def routed(domain: int, count: int) -> dict[str, Any]:
        experts = np.stack([pick(choose[layer, domain], count, spec.top_k, rng) for layer in range(spec.layers)])
        weights = -np.sort(-rng.dirichlet(np.ones(spec.top_k), size=(spec.layers, count)), axis=2)
        return {"experts": experts.tolist(), "weights": weights.round(3).tolist()}

    if spec.kind == "image":
        labels = [str(number % 10) for number in range(40)]
        pixels = rng.integers(0, 256, size=(40, 28, 28)).tolist()
        return [{"domain": "digits", "tokens": labels, "pixels": pixels, **routed(0, 40)}]
    views = []
    for number, name in enumerate(spec.domains):
        source = spec.texts.get(name, list("lorem ipsum "))
        tokens = (source * (spec.tokens // len(source) + 1))[: spec.tokens]
        views.append({"domain": name, "tokens": tokens, **routed(number, len(tokens))})
    return views


def write_sweep(directory: Path, specs: list[RunSpec], *, finished: bool = True, waiting: int = 0) -> Path:
    """Write a sweep directory of these cells; `waiting` cells exist as empty folders only."""
    names = [f"{s.control or s.router}-k{s.top_k}-{s.balance}-s{s.seed}" for s in specs]
    for name, spec in zip(names, specs, strict=True):
        write_run(directory / "cells" / name, spec)
    for number in range(waiting):
        (directory / "cells" / f"zz-waiting-{number}").mkdir(parents=True)
    write_json(
        directory / "sweep.json",
        {
            "schema": 1,
            "name": directory.name,
            "kind": specs[0].kind,
            "command": "moegate sweep --top-k 1,2,4",
            "axes": {"top_k": sorted({s.top_k for s in specs}), "seeds": len({s.seed for s in specs})},
            "software": SOFTWARE,
            "finished": finished,
        },
    )
    write_json(directory / "table.json", {"rows": table_rows(directory, names)})
    return directory


def table_rows(directory: Path, names: list[str]) -> list[dict[str, Any]]:
    groups: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for name in names:
        cell = directory / "cells" / name
        if (cell / "evaluation.json").exists():
            run = json.loads((cell / "run.json").read_text(encoding="utf-8"))
            result = json.loads((cell / "evaluation.json").read_text(encoding="utf-8"))
            groups.setdefault(name.rsplit("-s", 1)[0], []).append((run, result))
    rows = []
    for runs in groups.values():
        run, result = runs[0]
        values = [found["value"] for _, found in runs]
        several = len(values) > 1
        rows.append(
            {
                **{name: run["cell"][name] for name in ("router", "top_k", "balance", "control")},
                "seeds": len(runs),
                "metric": result["metric"],
                "mean": float(np.mean(values)),
                "ci95": float(2 * np.std(values, ddof=1)) if several else None,
                "tokens_per_second": result["tokens_per_second"],
                "tokens_per_second_ci95": 120.0 if several else None,
                "inference_tokens_per_second": result["inference_tokens_per_second"],
                **{name: result[name] for name in ("utilization", "max_violation", "drop_rate")},
                **{name: run[name] for name in ("parameters", "active_parameters", "causal")},
            }
        )
    return rows


def image_sweep_specs() -> list[RunSpec]:
    """A sweep as `moegate demo` runs it, with both controls and a router that looks ahead."""
    common: dict[str, Any] = {"kind": "image", "domains": tuple(map(str, range(10))), "layers": 2}
    specs = []
    for seed in range(3):
        for top_k in (1, 2, 4):
            specs += [
                RunSpec(**common, top_k=top_k, seed=seed),
                RunSpec(**common, top_k=top_k, seed=seed, router="switch", balance="none", drop_rate=0.06),
                RunSpec(**common, top_k=top_k, seed=seed, router="expert_choice", balance="none", causal=False),
                RunSpec(**common, top_k=top_k, seed=seed, control="dense", balance="none"),
                RunSpec(**common, top_k=top_k, seed=seed, control="frozen", balance="none"),
            ]
    return specs


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run("name", top_k=4, ...)` writes a run and returns its directory."""
    return lambda name="run", **settings: write_run(tmp_path / name, RunSpec(**settings))


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Path]:
    """`make_sweep("name", [{...}, ...])` writes a sweep of these cells and returns its directory."""

    def make(name: str, cells: list[dict[str, Any]], **state: Any) -> Path:
        return write_sweep(tmp_path / name, [RunSpec(**cell) for cell in cells], **state)

    return make


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it: an image sweep, a text run, an unfinished run. Made once."""
    folder = tmp_path_factory.mktemp("gallery")
    sweep = write_sweep(folder / "digits", image_sweep_specs())
    text = write_run(folder / "language", RunSpec(name="language model"))
    unfinished = write_run(folder / "going", RunSpec(name="still going", seed=1, finished=False))
    return write_report([sweep, text, unfinished], folder / "report.html")


@pytest.fixture
def page_data() -> Callable[[Path], dict[str, Any]]:
    """The data inside a written page."""

    def read(page: Path) -> dict[str, Any]:
        html = page.read_text(encoding="utf-8")
        embedded = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
        return dict(json.loads(embedded))

    return read
