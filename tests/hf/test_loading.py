"""Models and texts for the command line."""

from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from moegate.hf.loading import PIECE, ByteTokenizer, load_model, texts_to_batches

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved_model(folder: Path, vocab_size: int) -> MixtralForCausalLM:
    model = MixtralForCausalLM(
        MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, vocab_size=vocab_size, dtype=torch.float32)
    )
    model.save_pretrained(folder)
    return model


def test_a_byte_level_folder_comes_back_with_bytes_as_tokens(tmp_path: Path) -> None:
    saved = saved_model(tmp_path, 256)
    model, tokenizer = load_model(tmp_path)
    assert isinstance(tokenizer, ByteTokenizer)
    assert not model.training
    (batch,) = texts_to_batches(["some text"], tokenizer)
    with torch.no_grad():
        assert torch.equal(model(**batch.inputs).logits, saved.eval()(**batch.inputs).logits)


def test_another_vocabulary_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    saved_model(tmp_path, 1000)
    with pytest.raises(ValueError, match="no tokenizer, and its vocabulary of 1000 tokens"):
        load_model(tmp_path)


def test_a_folder_without_a_model_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_model(tmp_path)


def test_a_damaged_configuration_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"Can't load .*AutoConfig") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}')
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="Can't load"):
        load_model(tmp_path)


def test_every_token_comes_once_and_in_order() -> None:
    texts = ["a" * 10, "", "bcd", "line\n" * 3]
    tokens, documents, domains = [], [], []
    for batch in texts_to_batches(texts, ByteTokenizer(), sequence_length=4, batch_size=3, domain_ids=[5, 6, 7, 8]):
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert batch.input_ids.shape[0] <= 3 and batch.input_ids.shape[1] <= 4
        real = batch.attention_mask.bool()
        assert (batch.document_ids[~real] == -1).all() and (batch.domain_ids[~real] == -1).all()
        tokens += batch.input_ids[real].tolist()
        documents += batch.document_ids[real].tolist()
        domains += batch.domain_ids[real].tolist()
    assert bytes(tokens).decode() == "".join(texts)
    assert documents == [number for number, text in enumerate(texts) for _ in text]
    assert domains == [number + 5 for number in documents]


def test_long_texts_are_tokenized_in_parts_that_end_with_a_line() -> None:
    seen: list[str] = []

    class Watching(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            seen.append(text)
            return super().encode(text)

    text = ("x" * 99 + "\n") * (PIECE // 100 + 1) + "y" * (PIECE + 7)
    total = sum(batch.num_tokens for batch in texts_to_batches([text], Watching(), sequence_length=4096))
    assert total == len(text)
    assert "".join(seen) == text
    assert all(len(piece) <= PIECE for piece in seen)
    assert seen[0].endswith("\n")


@pytest.mark.parametrize("max_tokens", [1, 4, 5, 7, 100])
def test_it_ends_after_max_tokens(max_tokens: int) -> None:
    batches = list(texts_to_batches(["abcde", "fg"], ByteTokenizer(), sequence_length=4, max_tokens=max_tokens))
    assert sum(batch.num_tokens for batch in batches) == min(max_tokens, 7)


@pytest.mark.parametrize("name", ["sequence_length", "batch_size", "max_tokens"])
def test_sizes_below_one_are_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        texts_to_batches(["a"], ByteTokenizer(), **{name: 0})


def test_too_few_domains_are_refused() -> None:
    with pytest.raises(ValueError, match="domain_ids has 1 entries"):
        list(texts_to_batches(["a", "b"], ByteTokenizer(), domain_ids=[0]))
