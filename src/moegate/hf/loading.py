"""Models and texts for the verbs of the command line: a folder or a name on the Hub, read into batches of tokens."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["ByteTokenizer", "TextBatch", "Tokenizer", "load_model", "load_tokenizer", "texts_to_batches"]

BYTES = 256
BYTE_VOCABULARIES = range(BYTES, 513)
"""Sizes of the vocabulary that a byte-level model may have: the bytes, and room for special tokens."""

PIECE = 200_000
"""Characters that are tokenized at a time: slow tokenizers take longer than linear in the length of a text."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model"),
)


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        ...


class ByteTokenizer:
    """Bytes of UTF-8 as tokens, for byte-level models, which are saved without a tokenizer.

    Example:
        >>> ByteTokenizer().encode("né")
        [110, 195, 169]
        >>> ByteTokenizer().decode([110, 195, 169, 300])
        'né'
    """

    def encode(self, text: str) -> list[int]:
        """The bytes of the text."""
        return list(text.encode("utf-8", errors="surrogateescape"))

    def decode(self, token_ids: list[int]) -> str:
        """The text of the bytes; other ids are left out, a cut character is shown as �."""
        return bytes(token for token in token_ids if 0 <= token < BYTES).decode("utf-8", errors="replace")


@dataclass(frozen=True, eq=False)
class TextBatch:
    """``B`` windows of up to ``S`` tokens, filled up on the right.

    Attributes:
        input_ids: ``[B, S]`` int64; 0 in the padding.
        attention_mask: ``[B, S]`` int64, 1 for a real token.
        document_ids: ``[B, S]`` int64, the number of the text that the token is of; -1 in the padding.
        domain_ids: ``[B, S]`` int64, the number of the text's domain; -1 in the padding and where there are none.
    """

    input_ids: Tensor
    attention_mask: Tensor
    document_ids: Tensor
    domain_ids: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with: ``model(**batch.inputs)``."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    @property
    def num_tokens(self) -> int:
        """The real tokens."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same batch on another device."""
        return TextBatch(*(tensor.to(device) for tensor in vars(self).values()))


def load_model(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Tokenizer]:
    """A model of transformers in evaluation mode, and its tokenizer.

    A folder without a tokenizer whose vocabulary has the size of a byte-level model's (256 to 512) gets a
    ``ByteTokenizer``.

    Args:
        name_or_folder: a folder that ``save_pretrained`` wrote, or a name on the Hugging Face Hub.
        dtype: of the weights; ``"auto"`` takes that of the checkpoint.
        device: where the model goes.
        trust_remote_code: run the modelling code that comes with the checkpoint; a stranger's program.

    Raises:
        ValueError: there is no model, or no tokenizer that fits it.
    """
    where = str(name_or_folder)
    folder = Path(where)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ValueError(f"{where} is no folder of a model: it has no config.json, as save_pretrained() writes it.")
    options = {"trust_remote_code": trust_remote_code}
    config = _read(where, "AutoConfig", **options)
    model = _read(where, _auto_class(config), config=config, dtype=dtype, **options)
    return model.to(device).eval(), _tokenizer(where, config, **options)


def load_tokenizer(name_or_folder: str | Path) -> Tokenizer:
    """A tokenizer of transformers by its folder or name on the Hub; ``"bytes"`` is a ``ByteTokenizer``.

    Raises:
        ValueError: there is none.

    Example:
        >>> load_tokenizer("bytes").encode("né")
        [110, 195, 169]
    """
    if name_or_folder == "bytes":
        return ByteTokenizer()
    tokenizer: Tokenizer = _read(str(name_or_folder), "AutoTokenizer")
    return tokenizer


def texts_to_batches(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    sequence_length: int = 512,
    batch_size: int = 8,
    max_tokens: int | None = None,
    domain_ids: Sequence[int] | None = None,
) -> Iterator[TextBatch]:
    """Texts as batches: each text is cut into windows of ``sequence_length`` tokens, ``batch_size`` windows a batch.

    Args:
        texts: any number of them; each is a document of its own.
        tokenizer: whose ``encode`` makes token ids.
        sequence_length: tokens of a window; the last window of a text may be shorter.
        batch_size: windows of a batch; the last batch may have fewer.
        max_tokens: the end, after so many tokens of all texts together; None for no end.
        domain_ids: the number of the domain of each text.

    Raises:
        ValueError: a size is below 1, or there are fewer domains than texts.

    Example:
        >>> batches = texts_to_batches(["abcde", "xy"], ByteTokenizer(), sequence_length=4, batch_size=2)
        >>> [batch.input_ids.tolist() for batch in batches]
        [[[97, 98, 99, 100], [101, 0, 0, 0]], [[120, 121]]]
    """
    sizes = {"sequence_length": sequence_length, "batch_size": batch_size, "max_tokens": max_tokens}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} is {size}, but must be at least 1.")
    domains: Iterable[int] = repeat(-1) if domain_ids is None else domain_ids
    windows = _windows(texts, tokenizer, sequence_length, domains)
    if max_tokens is not None:
        windows = _first_tokens(windows, max_tokens)
    # No windows are left: _batch gives None, which ends the iterator.
    return iter(lambda: _batch(list(islice(windows, batch_size))), None)


_Window = tuple[list[int], int, int]
"""Token ids, document, domain."""


def _windows(texts: Iterable[str], tokenizer: Tokenizer, length: int, domains: Iterable[int]) -> Iterator[_Window]:
    left = iter(domains)
    for document, text in enumerate(texts):
        domain = next(left, None)
        if domain is None:
            raise ValueError(f"domain_ids has {document} entries, but there are more texts: pass one a text.")
        token_ids = chain.from_iterable(tokenizer.encode(piece) for piece in _pieces(text))
        while window := list(islice(token_ids, length)):
            yield window, document, domain


def _pieces(text: str) -> Iterator[str]:
    """The text in parts that end with a line, so that no word is cut; a line longer than a part is cut."""
    start = 0
    while start < len(text):
        end = min(start + PIECE, len(text))
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _first_tokens(windows: Iterator[_Window], max_tokens: int) -> Iterator[_Window]:
    left = max_tokens
    for token_ids, document, domain in windows:
        yield token_ids[:left], document, domain
        left -= len(token_ids)
        if left <= 0:
            return


def _batch(windows: list[_Window]) -> TextBatch | None:
    if not windows:
        return None
    width = max(len(token_ids) for token_ids, _, _ in windows)
    rows: tuple[list[list[int]], ...] = ([], [], [], [])
    for token_ids, document, domain in windows:
        size, padding = len(token_ids), width - len(token_ids)
        values = (token_ids, [1] * size, [document] * size, [domain] * size)
        for row, value, filler in zip(rows, values, (0, 0, -1, -1), strict=True):
            row.append(value + [filler] * padding)
    return TextBatch(*(torch.tensor(row, dtype=torch.int64) for row in rows))


def _auto_class(config: Any) -> str:
    """The loader of transformers that knows the kind of model, causal language models first."""
    import transformers

    names = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModel")
    for name in names:
        if type(config) in getattr(transformers, name)._model_mapping:
            return name
    # With remote code the checkpoint's own table says what it is.
    return next(iter(getattr(config, "auto_map", None) or {}), "AutoModelForCausalLM")


def _tokenizer(where: str, config: Any, **options: Any) -> Tokenizer:
    folder = Path(where)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        size = getattr(config.get_text_config(), "vocab_size", None)
        if size in BYTE_VOCABULARIES:
            return ByteTokenizer()
        raise ValueError(
            f"{where} has no tokenizer, and its vocabulary of {size} tokens is not that of a byte-level model "
            f"({BYTE_VOCABULARIES[0]} to {BYTE_VOCABULARIES[-1]}): save the tokenizer beside the model."
        )
    tokenizer: Tokenizer = _read(where, "AutoTokenizer", **options)
    return tokenizer


def _read(where: str, loader: str, **options: Any) -> Any:
    """``loader.from_pretrained``; what can't be read is a sentence."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("Models need transformers: pip install 'moegate[hf]'.") from error
    try:
        return getattr(transformers, loader).from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        found = "the folder" if Path(where).exists() else "no such folder here, and the Hub"
        raise ValueError(f"Can't load {where} with {loader} ({found} said): {reason}") from error
