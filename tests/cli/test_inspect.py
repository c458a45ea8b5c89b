"""`moegate inspect`: a model on texts, a trace of a file, a comparison, a sweep over K."""

import json
import sys
import webbrowser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "hf"))

from trained_model import NUM_EXPERTS, TEXTS, train_and_save, write_corpus

from moegate.cli import model_runs
from moegate.cli.layer_table import layers_to_list
from moegate.cli.shell import app
from moegate.hf.loading import load_model
from moegate.trace import Trace, load, save

NARROW = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_and_save(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("texts") / "corpus")


@pytest.fixture
def run() -> Any:
    def invoke(*arguments: object, code: int = 0) -> Result:
        shown = CliRunner(env=NARROW).invoke(app, ["inspect", *map(str, arguments)])
        assert shown.exit_code == code, shown.output
        assert "Traceback" not in shown.output
        return shown

    return invoke


def sentence(shown: Result) -> str:
    return " ".join(shown.stderr.split())


def received(folder: Path, windows: list[bytes]) -> torch.Tensor:
    """Counts `[L, E]` of what the experts received, by hooks of the test's own, a window at a time."""
    model, _ = load_model(folder)
    load_LE = torch.zeros(2, NUM_EXPERTS, dtype=torch.long)
    for number, layer in enumerate(model.model.layers):

        def hook(_: Any, args: Any, kwargs: Any, number: int = number) -> None:
            index = kwargs.get("top_k_index", args[1] if len(args) > 1 else None)
            load_LE[number] += index.flatten().bincount(minlength=NUM_EXPERTS)

        layer.mlp.experts.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        for window in windows:
            model(input_ids=torch.tensor([list(window)]))
    return load_LE


def test_a_model_is_run_on_the_texts_and_its_layers_are_listed(run: Any, model: Path, corpus: Path) -> None:
    arguments = (model, "--corpus", corpus, "--tokens", 1000, "--sequence-length", 64)
    shown = run(*arguments)
    assert "tiny: 1,000 tokens, 2 layers of 8 experts, K = 2" in shown.output
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    windows = [
        (corpus / name / "0.txt").read_bytes()[start : start + 64][: 500 - start]
        for name in TEXTS
        for start in range(0, 500, 64)
    ]
    load_LE = received(model, windows)
    found = json.loads(run(*arguments, "--json").stdout)
    violation = load_LE.max(dim=1).values / load_LE.double().mean(dim=1) - 1
    assert [row["max_violation"] for row in found["layers"]] == pytest.approx(violation.tolist())
    assert [row["hottest"][0][0] for row in found["layers"]] == load_LE.argmax(dim=1).tolist()
    assert all(row["margin"] > 0 and 0 <= row["nmi"] <= 1 for row in found["layers"])
    for value in violation.tolist():
        assert f" {value:.2f} " in shown.output
    assert (found["tokens"], found["top_k"], found["files"]) == (1000, 2, {})


def test_the_trace_and_the_page_are_written(
    run: Any, model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    trace, page = tmp_path / "trace.safetensors", tmp_path / "page.html"
    shown = run(model, "--corpus", corpus, "--tokens", 600, "--save", trace, "--output", page, "--open")
    assert "Wrote the page to" in shown.output
    assert opened == [page.as_uri()]
    saved = load(trace)
    assert saved.domains == ("english", "python")
    assert saved.logits is None
    assert saved.token_ids is not None
    assert bytes(saved.token_ids[:300].tolist()).decode() == TEXTS["english"][:300]
    html = page.read_text(encoding="utf-8")
    assert '"tokens":["T","h","e"," ","r"' in html
    again = json.loads(run(trace, "--json").stdout)
    assert again["tokens"] == 600
    assert again["layers"][0]["margin"] is None, "logits were not kept in the file"


def test_logits_are_saved_where_asked_for(run: Any, model: Path, corpus: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.safetensors"
    run(model, "--corpus", corpus, "--tokens", 100, "--save", trace, "--logits")
    assert load(trace).logits is not None


def test_the_sweep_over_k_is_a_table_json_and_a_section(run: Any, model: Path, corpus: Path, tmp_path: Path) -> None:
    text, page = corpus / "english" / "0.txt", tmp_path / "page.html"
    arguments = (model, "--text", text, "--tokens", 400, "--top-k", "1,2,8", "--output", page)
    shown = run(*arguments)
    rows = [line.split() for line in shown.output.splitlines() if line.split()[:1] in (["1"], ["2"], ["8"])]
    found = json.loads(run(*arguments, "--json").stdout)["at_top_k"]
    assert [row["top_k"] for row in found] == [1, 2, 8]
    assert [row["trained"] for row in found] == [False, True, False]
    assert [row[1] for row in rows if len(row) < 8] == [f"{row['bits_per_byte']:.4f}" for row in found]
    assert "as trained" in shown.output
    assert '"bits_per_byte"' in page.read_text(encoding="utf-8")


def test_two_models_are_compared_on_the_same_tokens(run: Any, model: Path, corpus: Path, tmp_path: Path) -> None:
    changed, _ = load_model(model)
    with torch.no_grad():
        changed.model.layers[1].mlp.gate.weight.mul_(-1)
    changed.save_pretrained(tmp_path / "changed")
    arguments = (model, "--corpus", corpus, "--tokens", 400, "--compare", tmp_path / "changed", "--json")
    layers = json.loads(run(*arguments).stdout)["comparison"]["layers"]
    assert layers[0]["agreement"] == 1.0
    assert layers[1]["agreement"] < 0.7
    assert layers[1]["first"] > 0


def test_a_model_that_does_not_know_the_tokens_is_refused(model: Path, corpus: Path) -> None:
    subject = model_runs.load_subject(str(model), model_runs.Reading(corpus=corpus, tokens=20))
    subject.batches[-1].input_ids[0, 0] = 256
    with pytest.raises(ValueError, match=r"knows 256 tokens, and the texts have token 256.*the same tokenizer"):
        model_runs.load_subject(str(model), model_runs.Reading(), subject)


def test_values_of_k_are_checked_before_a_model_loads(run: Any) -> None:
    assert "must be a whole number" in sentence(run("no-such-model", "--top-k", "0", code=2))


def test_files_of_other_systems_are_read_and_compared_by_load(run: Any, tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    counts.write_text('{"0": {"0": 5, "1": 1}, "1": {"0": 3, "1": 3}}', encoding="utf-8")
    shown = run(counts, "--compare", counts, "--output", tmp_path / "page.html")
    assert "counts of 2 layers of 2 experts" in shown.output
    assert "no tokens in a trace of counts" in " ".join(shown.output.split())
    assert "only counts" in sentence(run(counts, "--save", tmp_path / "t.safetensors", code=2))


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A trace of 58 layers, the later ones less even."""
    rng = np.random.default_rng(0)
    indices = np.stack([rng.integers(0, 256 - 4 * layer, size=(300, 8)) for layer in range(58)], axis=1)
    names = tuple(f"model.layers.{layer + 3}.mlp" for layer in range(58))
    logits = torch.from_numpy(rng.standard_normal((300, 58, 256)).astype(np.float32))
    ids = {"domain_ids": torch.arange(300) % 2, "domains": ("a", "b"), "token_ids": torch.arange(300) % 200}
    trace = Trace(torch.from_numpy(indices), names, (256,) * 58, logits=logits, **ids)
    return save(trace, tmp_path / "deep.safetensors")


@pytest.mark.parametrize(("wanted", "count"), [((), 10), (("--layers", "3"), 3), (("--layers", "all"), 58)])
def test_many_layers_are_listed_worst_first(run: Any, deep: Path, wanted: tuple[str, ...], count: int) -> None:
    lines = run(deep, *wanted).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    numbers = [line.split()[0] for line in lines if line.split() and line.split()[0].isdigit() and "–" in line]
    assert len(numbers) == count
    assert numbers == [str(n) for n in range(3, 61)] if count == 58 else numbers[0] in ("58", "59", "60")
    assert any(line.startswith("median") for line in lines)


def test_a_tokenizer_shows_the_text_of_a_trace(run: Any, deep: Path, tmp_path: Path) -> None:
    run(deep, "--tokenizer", "bytes", "--output", tmp_path / "page.html")
    assert '"a","c","e","g"' in (tmp_path / "page.html").read_text(encoding="utf-8"), "every other token is of a domain"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{deep}", "--text", "x.txt"), "is a trace, and nothing is run; leave out --text"),
        (("{deep}", "--top-k", "2", "--tokens", "5"), "leave out --top-k, --tokens"),
        (("{deep}", "--compare", "{model}"), "is no file: a trace is compared with another trace"),
        (("{deep}", "--layers", "some"), "neither 'all' nor how many"),
        (("{deep}", "--layers", "0"), "neither 'all' nor how many"),
        (("{deep}", "--output", "{folder}"), "is a folder; pass the HTML file"),
        (("{deep}", "--save", "{folder}/no/t.safetensors"), "There is no folder"),
        (("{folder}/gone.safetensors",), "There is no file"),
        (("{deep}", "--compare", "{folder}/gone.json"), "There is no file"),
        (("{folder}",), "it has no config.json"),
        (("{model}", "--tokenizer", "bytes"), "--tokenizer is for traces"),
        (("{model}", "--corpus", "{corpus}", "--text", "x.txt"), "pass one of them"),
        (("{model}", "--corpus", "{folder}/none"), "is no folder"),
        (("{model}", "--text", "none.txt"), "none.txt is no file"),
        (("{model}", "--corpus", "{corpus}", "--top-k", "1,9"), "can choose from 1 to 8 experts"),
        (("{model}", "--corpus", "{corpus}", "--top-k", "x"), "must be a whole number"),
        (("{model}", "--corpus", "{corpus}", "--tokens", "0"), "0 tokens are too few for 2 domains"),
        (("{model}", "--corpus", "{corpus}", "--batch-size", "0"), "batch_size is 0, but must be at least 1"),
        (("{model}", "--corpus", "{corpus}", "--device", "nonsense"), "--device 'nonsense' cannot be used here"),
        (("{model}", "--corpus", "{corpus}", "--dtype", "int3"), "--dtype 'int3' is none of auto"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(
    run: Any, model: Path, corpus: Path, deep: Path, arguments: tuple[str, ...], words: str
) -> None:
    folder = deep.parent / "folder"
    folder.mkdir()
    places = {"deep": deep, "model": model, "corpus": corpus, "folder": folder}
    shown = run(*(argument.format(**places) for argument in arguments), code=2)
    assert words in sentence(shown)
    assert list(folder.iterdir()) == []


def test_an_interrupted_run_writes_nothing(
    run: Any, model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("--save", tmp_path / "t.safetensors", "--output", tmp_path / "page.html")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_runs.Subject, "num_tokens", property(stop))
    shown = run(model, "--corpus", corpus, *files, code=130)
    assert "Stopped; nothing was written." in shown.output
    assert list(tmp_path.iterdir()) == []


def test_margins_are_left_out_where_the_logits_would_not_fit(
    run: Any, model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runs, "LOGITS_LIMIT", 100)
    shown = run(model, "--corpus", corpus, "--tokens", 100, "--json")
    assert "so there are no margins" in sentence(shown)
    assert json.loads(shown.stdout)["layers"][0]["margin"] is None


def test_without_texts_a_sample_of_the_corpus_is_taken(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moegate.hf import text_files

    monkeypatch.setattr(text_files, "sample_domains", lambda: [text_files.Domain("sample", text="of a text " * 9)])
    assert json.loads(run(model, "--json").stdout)["tokens"] == 90


def test_a_number_of_layers_beyond_all_is_all() -> None:
    assert layers_to_list("99", 58) is None
