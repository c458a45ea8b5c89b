"""`moegate prune-scores`, on a tiny model in a folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

pytest.importorskip("transformers")

from transformers import MixtralConfig, MixtralForCausalLM

from moegate.cli.shell import app
from moegate.hf.loading import ByteTokenizer, load_model, texts_to_batches
from moegate.hf.saliency import saliency

TEXT = "The quick brown fox jumps over the lazy dog. " * 5


def run(*arguments: object, width: int = 200) -> Result:
    environment = {"TERMINAL_WIDTH": str(width), "COLUMNS": str(width), "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(app, ["prune-scores", *map(str, arguments)])


def said(shown: Result) -> str:
    return " ".join((shown.stdout + shown.stderr).split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 256}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=6)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def test_scores_and_what_to_drop(folder: Path) -> None:
    output = folder / "scores.safetensors"
    shown = run(folder / "model", "--text", folder / "text.txt", "--tokens", 100, "--keep", 4, "--output", output)
    assert shown.exit_code == 0, shown.output
    assert "100 tokens, 2 layers." in shown.output
    assert "Experts to drop" in shown.output
    model, _ = load_model(folder / "model")
    batches = texts_to_batches([TEXT], ByteTokenizer(), max_tokens=100)
    expected = saliency(model, batches)
    assert torch.allclose(load_file(output)["reap"], expected.reap)


def test_json_lists_every_score(folder: Path) -> None:
    shown = run(folder / "model", "-t", folder / "text.txt", "--tokens", 50, "--keep", 5, "--by", "frequency", "--json")
    assert shown.exit_code == 0, shown.output
    values = json.loads(shown.stdout)
    assert (values["tokens"], values["by"]) == (50, "frequency")
    for layer in values["layers"].values():
        assert sum(layer["frequency"]) == pytest.approx(2)
        assert layer["drop"] == [layer["frequency"].index(min(layer["frequency"]))]
        assert len(layer["reap"]) == len(layer["weight"]) == len(layer["count"]) == 6


def test_it_fits_eighty_columns(folder: Path) -> None:
    shown = run(folder / "model", "-t", folder / "text.txt", "--tokens", 50, width=80)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_errors_are_sentences(folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    for arguments, sentence in [
        ((folder / "model", "-t", folder / "none.txt"), "none.txt is no file"),
        ((folder / "model", "-t", folder / "empty.txt"), "There is no text to run the model on"),
        ((folder, "-t", folder / "text.txt"), "has no config.json"),
        (
            (folder / "model", "-t", folder / "text.txt", "--tokens", 20, "--keep", 7),
            "keep is 7, but must be from 1 to 6",
        ),
        ((folder / "model", "-t", folder / "text.txt", "--tokens", 0), "0 tokens are too few"),
    ]:
        shown = run(*arguments)
        assert shown.exit_code == 2, shown.output
        assert sentence in said(shown)
        assert "Traceback" not in shown.output
