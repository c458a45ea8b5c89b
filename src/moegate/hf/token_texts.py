"""The text of tokens one by one, and how many bytes they stand for."""

from collections.abc import Sequence

from moegate.hf.loading import BYTES, ByteTokenizer, Tokenizer

__all__ = ["text_bytes", "token_texts"]

_LONGEST = 4
"""Tokens that one character of UTF-8 can be spread over, a byte each."""

_CUT = "\ufffd"


def token_texts(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """The text of each token, as the page about a trace shows it.

    A character that several tokens make up is shown by the first of them, the others are empty; what never becomes a
    character is shown as �.

    Example:
        >>> token_texts(ByteTokenizer(), [110, 195, 169])
        ['n', 'é', '']
    """
    texts: list[str] = []
    while len(texts) < len(token_ids):
        start = len(texts)
        before = list(token_ids[max(0, start - 1) : start])
        pieces = (_piece(tokenizer, before, list(token_ids[start:end])) for end in _ends(start, len(token_ids)))
        size, text = next(((size, piece) for size, piece in enumerate(pieces, 1) if _CUT not in piece), (1, _CUT))
        texts += [text, *[""] * (size - 1)]
    return texts


def _ends(start: int, length: int) -> range:
    return range(start + 1, min(start + _LONGEST, length) + 1)


def _piece(tokenizer: Tokenizer, before: list[int], token_ids: list[int]) -> str:
    """The text of some tokens behind another one: at the beginning of a text, tokenizers strip the space of a word."""
    if isinstance(tokenizer, ByteTokenizer):
        return tokenizer.decode(token_ids)
    whole, start = tokenizer.decode(before + token_ids), tokenizer.decode(before) if before else ""
    return whole[len(start) :] if whole.startswith(start) else tokenizer.decode(token_ids)


def text_bytes(tokenizer: Tokenizer, token_ids: Sequence[int]) -> int:
    """The bytes of UTF-8 that the tokens stand for.

    Example:
        >>> text_bytes(ByteTokenizer(), list("né".encode()))
        3
    """
    if isinstance(tokenizer, ByteTokenizer):
        return sum(0 <= token < BYTES for token in token_ids)
    return len(tokenizer.decode(list(token_ids)).encode("utf-8", errors="replace"))
