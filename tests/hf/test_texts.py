"""Texts by domain, and tokens as text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from moegate.hf.loading import ByteTokenizer
from moegate.hf.text_files import Domain, domains_of_corpus, domains_of_files, text_batches
from moegate.hf.token_texts import text_bytes, token_texts


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_sub_folders_are_domains_with_all_files_below(tmp_path: Path) -> None:
    files = {"en/b.txt": b"b", "en/more/a.txt": b"a", "en/.hidden": b"h", "en/empty": b"", "py/x.py": b"x"}
    write(tmp_path, files | {"readme.txt": b"beside", ".git/config": b"g", "none/.keep": b"k"})
    found = {domain.name: list(domain.texts()) for domain in domains_of_corpus(tmp_path)}
    assert found == {"en": ["b", "a"], "py": ["x"]}


def test_without_sub_folders_files_are_domains(tmp_path: Path) -> None:
    write(tmp_path, {"one.txt": b"1", "two.md": b"2", ".hidden": b"h", "empty.txt": b""})
    assert [(domain.name, list(domain.texts())) for domain in domains_of_corpus(tmp_path)] == [
        ("one", ["1"]),
        ("two", ["2"]),
    ]


def test_files_of_one_name_are_named_by_their_path(tmp_path: Path) -> None:
    write(tmp_path, {"a/text.txt": b"1", "b/text.txt": b"2"})
    paths = [tmp_path / "a/text.txt", tmp_path / "b/text.txt"]
    assert [domain.name for domain in domains_of_files(paths)] == [str(path) for path in paths]
    with pytest.raises(ValueError, match="given twice"):
        domains_of_files([paths[0], paths[0]])


def test_what_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, {"en/picture.png": b"\x89PNG\0\0", "bom.txt": b"\xef\xbb\xbfhi\xff"})
    with pytest.raises(ValueError, match=r"picture\.png is not text: it has a zero byte"):
        list(domains_of_corpus(tmp_path)[0].texts())
    assert list(domains_of_files([tmp_path / "bom.txt"])[0].texts()) == ["hi\ufffd"]
    with pytest.raises(ValueError, match="is no file"):
        domains_of_files([tmp_path / "nothing.txt"])
    with pytest.raises(ValueError, match="is no folder"):
        domains_of_corpus(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is no text in"):
        domains_of_corpus(tmp_path / "empty")


def test_each_domain_gets_as_many_tokens() -> None:
    domains = [Domain("long", text="a" * 1000), Domain("short", text="b" * 7), Domain("other", text="c" * 1000)]
    batches = list(text_batches(domains, ByteTokenizer(), tokens=90, sequence_length=16, batch_size=2))
    counts = [0, 0, 0]
    for batch in batches:
        (number,) = set(batch.domain_ids[batch.attention_mask.bool()].tolist())
        counts[number] += batch.num_tokens
        assert set(batch.input_ids[batch.attention_mask.bool()].tolist()) == {ord("abc"[number])}
    assert counts == [30, 7, 30]
    with pytest.raises(ValueError, match="2 tokens are too few for 3 domains"):
        list(text_batches(domains, ByteTokenizer(), tokens=2, sequence_length=16, batch_size=2))


@given(st.text(max_size=30))
def test_bytes_show_each_character_once(text: str) -> None:
    ids = ByteTokenizer().encode(text) if text.isprintable() else list(text.encode("utf-8", "replace"))
    shown = token_texts(ByteTokenizer(), ids)
    assert len(shown) == len(ids) == text_bytes(ByteTokenizer(), ids)
    assert "".join(shown) == bytes(ids).decode("utf-8", "replace")


def test_what_is_no_character_is_shown_as_such() -> None:
    assert token_texts(ByteTokenizer(), [0x61, 0xC3, 0x61, 0xE6, 0x97]) == ["a", "\ufffd", "a", "\ufffd", "\ufffd"]
    assert token_texts(ByteTokenizer(), []) == []


@pytest.fixture(scope="module")
def subwords():  # type: ignore[no-untyped-def]
    """A byte-level tokenizer of subwords, trained on a line, as GPT-2's and Qwen's are made."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["the router sends the tokens to the experts"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize(
    "text", ["the router sends the experts", "日本語 and 🙂 the", " leading  spaces\n\tthe", "é" * 9]
)
def test_subwords_keep_their_spaces_and_split_characters(subwords, text: str) -> None:  # type: ignore[no-untyped-def]
    ids = subwords.encode(text)
    shown = token_texts(subwords, ids)
    assert len(shown) == len(ids)
    assert "".join(shown) == text
    assert text_bytes(subwords, ids) == len(text.encode())
