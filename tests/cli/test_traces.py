"""`moegate import`, `moegate diff` and `moegate place`, on files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from moegate.cli.shell import app
from moegate.trace import Loads, Trace, load, read, save, save_loads

WIDE = {"TERMINAL_WIDTH": "200", "COLUMNS": "200", "NO_COLOR": "1"}


def run(*arguments: Any, width: int = 200) -> Result:
    environment = {**WIDE, "TERMINAL_WIDTH": str(width), "COLUMNS": str(width)}
    return CliRunner(env=environment).invoke(app, [str(one) for one in arguments])


def said(shown: Result) -> str:
    return " ".join((shown.stdout + shown.stderr).split())


def example(num_tokens: int = 60, *, seed: int = 0) -> Trace:
    """Three layers of eight experts, two a token, with favourites."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, 3, 8, generator=generator) + torch.linspace(0, 2, 8)
    weights, indices = logits.topk(2)
    names = tuple(f"model.layers.{number}.mlp" for number in (1, 2, 3))
    ids = torch.arange(num_tokens)
    return Trace(
        indices.to(torch.int8), names, (8,) * 3, weights.softmax(2), logits, token_ids=ids, document_ids=ids // 30
    )


def moved(trace: Trace) -> Trace:
    """The first ten tokens go to other experts in the second layer."""
    indices = trace.indices.clone()
    indices[:10, 1] = (indices[:10, 1] + 1) % 8
    return Trace(indices, trace.layers, trace.num_experts, token_ids=trace.token_ids, document_ids=trace.document_ids)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    trace = example()
    save(trace, tmp_path / "a.safetensors")
    save(moved(trace), tmp_path / "b.safetensors")
    save_loads(Loads(trace.load, trace.layers, trace.num_experts), tmp_path / "loads.json")
    return tmp_path


def test_import_shows_and_keeps_a_trace(tmp_path: Path) -> None:
    indices = example().indices.numpy()
    np.save(tmp_path / "routed.npy", indices)
    output = tmp_path / "new" / "t.safetensors"
    shown = run("import", tmp_path / "routed.npy", "--num-experts", 9, "--output", output)
    assert shown.exit_code == 0, shown.output
    assert "A trace of 60 tokens, 3 layers, 9 experts, top-2." in shown.output
    assert "MaxVio" in shown.output
    assert np.array_equal(load(output).indices.numpy(), indices)


def test_import_says_what_it_assumes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("layer,expert\n0,1\n0,3\n")
    shown = run("import", tmp_path / "t.csv", "-o", tmp_path / "l.json")
    assert shown.exit_code == 0, shown.output
    assert "Loads without tokens: 2 assignments, 1 layers, 4 experts." in shown.output
    assert "Note: The number of experts is assumed" in said(shown)
    assert read(tmp_path / "l.json").load.tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("name", "wrong", "right"), [("a.safetensors", "x.json", ".safetensors"), ("loads.json", "x.safetensors", ".json")]
)
def test_import_refuses_a_name_that_says_something_else(files: Path, name: str, wrong: str, right: str) -> None:
    shown = run("import", files / name, "-o", files / wrong)
    assert shown.exit_code == 2
    assert f"must end with {right}" in said(shown)
    assert not (files / wrong).exists()


def test_import_errors_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"routed_experts": [[[1, 2]], [[3]]]}')
    shown = run("import", tmp_path / "r.json")
    assert shown.exit_code == 2
    assert "r.json.routed_experts: the lists are ragged" in said(shown)
    assert "Traceback" not in shown.output


def test_diff_tells_where_they_part(files: Path) -> None:
    shown = run("diff", files / "a.safetensors", files / "b.safetensors", "--show", 3)
    assert shown.exit_code == 0, shown.output
    assert "5.56% of the decisions" in said(shown)
    assert "16.7% of the tokens differ in at least one layer; most part first in model.layers.2.mlp" in said(shown)
    assert "Tokens that differ most" in shown.output


def test_diff_as_json_has_no_nan(files: Path) -> None:
    shown = run("diff", files / "a.safetensors", files / "b.safetensors", "--json")
    values = json.loads(shown.output, parse_constant=pytest.fail)
    assert values["tokens_differing"] == pytest.approx(1 / 6)
    assert [row["first"] for row in values["layers"]] == [0, 10, 0]


def test_diff_writes_a_page(files: Path) -> None:
    shown = run("diff", files / "a.safetensors", files / "b.safetensors", "-o", files / "page.html")
    assert shown.exit_code == 0, shown.output
    assert "a and b" in (files / "page.html").read_text(encoding="utf-8")


def test_diff_of_the_same(files: Path) -> None:
    shown = run("diff", files / "a.safetensors", files / "a.safetensors")
    assert "The same experts for each of the 60 tokens in each of the 3 layers." in said(shown)
    assert "Tokens that differ most" not in shown.output


def test_diff_up_to_where_sequences_part(files: Path) -> None:
    trace = example()
    save(trace.select(tokens=torch.arange(60) % 30 < 20), files / "short.safetensors")
    refused = run("diff", files / "a.safetensors", files / "short.safetensors")
    assert refused.exit_code == 2 and "--tokens common-prefix" in said(refused)
    page = files / "page.html"
    shown = run("diff", files / "a.safetensors", files / "short.safetensors", "--tokens", "common-prefix", "-o", page)
    assert shown.exit_code == 0 and "each of the 40 tokens" in said(shown)
    html = page.read_text(encoding="utf-8")
    assert '"apart":""' in html and "Only the loads are compared" not in html, "the page compares what the table does"


def test_diff_needs_tokens(files: Path) -> None:
    shown = run("diff", files / "a.safetensors", files / "loads.json")
    assert shown.exit_code == 2
    assert "only counts of assignments" in said(shown)


def test_place_writes_what_it_shows(files: Path) -> None:
    output = files / "placement.json"
    shown = run("place", files / "a.safetensors", "--devices", 4, "--replicas", 4, "--output", output)
    assert shown.exit_code == 0, shown.output
    assert "Measured on what it was placed by: peak over mean of all layers" in said(shown)
    tables = json.loads(output.read_text())
    assert len(tables["physical_to_logical_map"]) == 3
    assert all(sorted(set(row)) == list(range(8)) and len(row) == 12 for row in tables["physical_to_logical_map"])


def test_place_holds_half_of_the_tokens_out(files: Path) -> None:
    shown = run("place", files / "a.safetensors", "--devices", 4, "--hold-out", "--json")
    assert shown.exit_code == 0, shown.output
    values = json.loads(shown.output, parse_constant=pytest.fail)
    assert values["fitted_on"] == "first half"
    figures = values["peak_over_mean"]
    assert figures["first half"]["placed"] <= figures["first half"]["in_order"]
    # By hand, from the table that was written.
    slots = values["placement"]["physical_to_logical_map"]
    later = example().indices[30:]
    peaks = [
        max(
            sum((later[:, layer] == expert).sum().item() for expert in row[2 * device : 2 * device + 2])
            for device in range(4)
        )
        for layer, row in enumerate(slots)
    ]
    assert figures["second half"]["placed"] == pytest.approx(sum(peaks) / (3 * 30 * 2 / 4))
    assert "second half" in run("place", files / "a.safetensors", "--devices", 4, "--hold-out").output


@pytest.mark.parametrize("form", ["eplb", "plain", "sglang", "vllm-ascend"])
def test_place_by_loads_in_each_format(files: Path, form: str) -> None:
    shown = run("place", files / "loads.json", "--devices", 2, "--format", form, "-o", files / "p.json")
    assert shown.exit_code == 0, shown.output
    assert "pairs, placed" not in shown.output
    assert json.loads((files / "p.json").read_text())


def test_place_leaves_a_layer_without_load_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "loads.json").write_text('{"0": [0, 0, 0, 0], "1": [5, 0, 0, 5]}')
    shown = run("place", tmp_path / "loads.json", "--devices", 2, "--json")
    values = json.loads(shown.output, parse_constant=pytest.fail)
    assert values["peak_over_mean"]["all"] == {
        "in_order": 1.0,
        "placed": 1.0,
        "layers": {"in_order": [None, 1.0], "placed": [None, 1.0]},
    }
    assert "–" in run("place", tmp_path / "loads.json", "--devices", 2).output


def test_place_says_which_replicas_fit(files: Path) -> None:
    shown = run("place", files / "loads.json", "--devices", 3)
    assert shown.exit_code == 0
    assert "To even it, place with 1 replicas for 3 experts on each of the 3 devices." in said(shown)
    for wanted in (("--json",), ("--output", files / "p.json")):
        shown = run("place", files / "loads.json", "--devices", 3, *wanted)
        assert shown.exit_code == 2 and "eplb has no word for that: place with 1 replicas" in said(shown)
        assert not (files / "p.json").exists()
    shown = run("place", files / "loads.json", "--devices", 3, "--json", "--format", "plain")
    assert shown.exit_code == 0
    assert all(
        len(devices) == 1 for layer in json.loads(shown.stdout)["placement"].values() for devices in layer.values()
    )
    shown = run("place", files / "loads.json", "--devices", 2, "--hold-out")
    assert shown.exit_code == 2 and "--hold-out needs a trace" in said(shown)


def test_many_layers_are_listed_from_the_worst(tmp_path: Path) -> None:
    trace = Trace(torch.rand(40, 20, 8).topk(2).indices, tuple(f"layer {n}" for n in range(20)), (8,) * 20)
    indices = trace.indices.clone()
    indices[:, 7] = (indices[:, 7] + 1) % 8
    save(trace, tmp_path / "a.safetensors")
    save(Trace(indices, trace.layers, trace.num_experts), tmp_path / "b.safetensors")
    for arguments in (("diff", "a", "b"), ("place", "a", "--devices", 4)):
        names = [tmp_path / f"{one}.safetensors" if one in ("a", "b") else one for one in arguments]
        rows = {
            wanted: [line.split()[1] for line in run(*names, "--layers", wanted).output.splitlines() if line[:1] == "│"]
            for wanted in ("all", "3")
        }
        assert rows["all"][:20] == [str(layer) for layer in range(20)]
        assert len(rows["3"]) in (3, 3 + 5)
        assert "the 3" in run(*names, "--layers", 3).output.lower()
        assert run(*names, "--layers", 0).exit_code == 2
    assert "│ 7 " in run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layers", 1).output


@pytest.mark.parametrize("arguments", [("import", "a"), ("diff", "a", "b"), ("place", "a", "--devices", "4")])
def test_tables_fit_eighty_columns(files: Path, arguments: tuple[str, ...]) -> None:
    verb, *rest = arguments
    names = [str(files / f"{one}.safetensors") if one in {"a", "b"} else one for one in rest]
    shown = run(verb, *names, width=80)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    assert "…" not in shown.output
