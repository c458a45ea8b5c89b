"""The sweep over K at inference, against the model's own loss."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from trained_model import TEXTS, TOP_K, train_and_save
from transformers import AutoModelForCausalLM

from moegate.hf.loading import ByteTokenizer, load_model, texts_to_batches
from moegate.hf.top_k_sweep import sweep_top_k


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_and_save(tmp_path_factory.mktemp("model"))


def batches(texts: list[str], **sizes: Any) -> list[Any]:
    return list(texts_to_batches(texts, ByteTokenizer(), **{"sequence_length": 64, "batch_size": 3} | sizes))


def test_loss_and_bits_are_those_of_the_model_with_that_k(folder: Path) -> None:
    texts = [text[:500] for text in TEXTS.values()]
    model, tokenizer = load_model(folder)
    done: list[None] = []
    rows = sweep_top_k(model, batches(texts), tokenizer, (1, 2, 8), done=lambda: done.append(None))
    assert [(row.top_k, row.trained) for row in rows] == [(1, False), (TOP_K, True), (8, False)]
    windows = [text.encode()[start : start + 64] for text in texts for start in range(0, 500, 64)]
    assert len(done) == 3 * math.ceil(len(windows) / 3)
    for row in rows:
        other = AutoModelForCausalLM.from_pretrained(folder, num_experts_per_tok=row.top_k)
        nats = 0.0
        for window in windows:
            ids = torch.tensor([list(window)])
            with torch.no_grad():
                nats += other(input_ids=ids, labels=ids).loss.item() * (len(window) - 1)
        predicted = sum(len(window) - 1 for window in windows)
        assert row.tokens == predicted
        assert row.loss == pytest.approx(nats / predicted, rel=1e-4)
        assert row.bits_per_byte == pytest.approx(nats / predicted / math.log(2), rel=1e-4)
        assert row.tokens_per_second > 0
    assert rows[1].loss < rows[0].loss, "it was trained with two"


class PairTokenizer:
    """Two bytes a token: half of the tokens of a ``ByteTokenizer``, and the same text."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode()[::2])

    def decode(self, token_ids: list[int]) -> str:
        return "ab" * len(token_ids)


def test_bits_are_of_the_bytes_of_the_text(folder: Path) -> None:
    model, _ = load_model(folder)
    tokenizer = PairTokenizer()
    row = sweep_top_k(model, list(texts_to_batches(["x" * 80], tokenizer)), tokenizer, (2,))[0]
    assert row.tokens == 39
    assert row.bits_per_byte == pytest.approx(row.loss / math.log(2) / 2)


@pytest.mark.parametrize(
    ("texts", "values", "sentence"),
    [
        (["text"], (), "pass the values of K"),
        (["text"], (2, 2), "each once"),
        (["text"], (1, 9), "top_k is 9, but model.layers.0.mlp can choose from 1 to 8"),
        ([], (1,), "no text to evaluate"),
        (["a"], (1,), "fewer than two tokens"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(
    folder: Path, texts: list[str], values: tuple[int, ...], sentence: str
) -> None:
    model, tokenizer = load_model(folder)
    with pytest.raises(ValueError, match=sentence):
        sweep_top_k(model, batches(texts), tokenizer, values)
    assert model.config.num_experts_per_tok == TOP_K


def test_a_model_that_predicts_nothing_is_refused(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    with pytest.raises(ValueError, match="predicts no next tokens"):
        sweep_top_k(model.model, batches(["text"]), tokenizer, (2,))


def test_a_number_that_is_not_finite_is_none_in_json(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    row = sweep_top_k(model, batches(["text"]), tokenizer, (2,))[0].to_dict()
    assert row["loss"] is None
    assert row["bits_per_byte"] is None
    assert row["top_k"] == 2
