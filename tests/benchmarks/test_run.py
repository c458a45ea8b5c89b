"""The benchmark times nothing that is wrong, and keeps what it measured."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = ("cases", "oracle", "plain", "run", "timing", "topk")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of the benchmark, imported as its script imports them, with small shapes."""
    monkeypatch.syspath_prepend(str(FOLDER))
    others = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    modules = {name: importlib.import_module(name) for name in MODULES}
    cases = modules["cases"]
    monkeypatch.setattr(cases, "ROUTE_SHAPES", (cases.Shape(6, 8, 2),))
    monkeypatch.setattr(cases, "LAYER_SHAPES", (cases.Shape(6, 4, 2, 8, 16),))
    monkeypatch.setattr(modules["timing"], "ROUND_SECONDS", 1e-4)
    monkeypatch.setattr(modules["topk"], "SHAPES", [(8, 2), (300, 3)])
    monkeypatch.setattr(modules["topk"], "ROWS", 4)
    yield modules
    for name in MODULES:
        del sys.modules[name]
    sys.modules.update(others)


def run(bench: dict[str, ModuleType], folder: Path, script: str = "run") -> str:
    app = typer.Typer()
    app.command()(bench[script].main)
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["--rounds", "2", "--results", str(folder)])
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_every_case_is_checked_timed_and_kept(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    assert "ratio" in run(bench, tmp_path)
    run(bench, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "plain_pytorch.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == ["route", "layer forward", "layer forward and backward"] * 2
    for line in lines:
        assert line["commit"]
        assert line["packages"]["torch"] == torch.__version__
        assert 0 < line["microseconds"]["moegate"]["min"] <= line["microseconds"]["moegate"]["median"]


def test_wrong_indices_are_not_timed(bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench["plain"].route
    monkeypatch.setattr(bench["plain"], "route", lambda logits, k: (right(-logits, k)[0], right(logits, k)[1]))
    with pytest.raises(SystemExit, match="plain route chose other experts"):
        bench["run"].measure(bench["cases"].all_cases()[0], rounds=1)


def test_wrong_weights_are_not_timed(bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench["plain"].route
    monkeypatch.setattr(bench["plain"], "route", lambda logits, k: (right(logits, k)[0], right(logits, k)[1] * 1.001))
    with pytest.raises(SystemExit, match="a weight is off"):
        bench["run"].measure(bench["cases"].all_cases()[0], rounds=1)


@pytest.mark.parametrize("number", [1, 2])
def test_a_wrong_layer_is_not_timed(number: int, bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench["plain"].mixture
    monkeypatch.setattr(bench["plain"], "mixture", lambda *args: right(*args) * 1.001)
    with pytest.raises(SystemExit, match="an output is off"):
        bench["run"].measure(bench["cases"].all_cases()[number], rounds=1)


def test_a_wrong_gradient_is_not_timed(bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench["plain"].mixture
    monkeypatch.setattr(bench["plain"], "mixture", lambda hidden, *rest: right(hidden.detach(), *rest) + 0 * hidden)
    with pytest.raises(SystemExit, match="a gradient is off"):
        bench["run"].measure(bench["cases"].all_cases()[2], rounds=1)


def test_rounds_alternate_the_order(bench: dict[str, ModuleType]) -> None:
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    bench["timing"].seconds_of = lambda call, repeats: call() or 1.0
    bench["timing"].interleaved(variants, rounds=2)
    assert "".join(calls).endswith("ab" + "ba")


def test_the_ways_to_find_the_top_k_are_timed_and_kept(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    output = run(bench, tmp_path, "topk")
    lines = [json.loads(line) for line in (tmp_path / "topk.jsonl").read_text().splitlines()]
    assert [(line["num_elements"], line["k"]) for line in lines] == [(8, 2), (300, 3)]
    assert set(lines[0]["microseconds"]) == {"full_sort", "heap", "quickselect", "blocked", "ordered_topk"}
    assert "quickselect" in output


def test_a_wrong_way_to_find_the_top_k_is_not_timed(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        bench["topk"].VARIANTS, "wrong", lambda values, k: torch.zeros(len(values), k, dtype=torch.int64)
    )
    with pytest.raises(SystemExit, match="not timed: wrong"):
        bench["topk"].measure(8, 2, rounds=1)
