"""Documents, and the split of a domain into training and validation text that share no document."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

END_OF_DOCUMENT = 0
"""The byte after every document. Text with a zero byte in it is refused, so it is never part of one."""

VALIDATION_SHARE = 0.1
_TOLERANCE = 0.05


class Document(NamedTuple):
    """A piece of text that is never spread over both splits, and a name for messages."""

    name: str
    text: bytes


class Split(NamedTuple):
    """The documents of one domain, in order."""

    train: list[Document]
    validation: list[Document]


def split_domains(domains: Mapping[str, Sequence[Document]]) -> dict[str, Split]:
    """Split every domain by position: the last tenth of its bytes is for validation.

    Exact duplicates within a domain are dropped (the first stays); a validation document that is also in the
    training text of any domain is dropped. The cut is at the document boundary nearest to 90 %. Only where
    that boundary is more than 5 % of the domain away, because one document is large, the cut is inside that
    document, at the end of a line.

    Raises:
        ValueError: a domain has too little text for two splits.

    Example:
        >>> pages = [Document(str(page), b"page %d" % page) for page in range(10)]
        >>> split = split_domains({"pages": pages})["pages"]
        >>> [document.name for document in split.validation]
        ['9']
    """
    splits = {name: _cut(drop_duplicates(documents)) for name, documents in domains.items()}
    seen = {_digest(document) for split in splits.values() for document in split.train}
    return {name: _without(name, split, seen) for name, split in splits.items()}


def drop_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The documents without empty ones and without exact repetitions, in their order."""
    first: dict[bytes, Document] = {}
    for document in documents:
        if document.text:
            first.setdefault(_digest(document), document)
    return list(first.values())


def join(documents: Iterable[Document]) -> bytes:
    """One byte stream, each document followed by `END_OF_DOCUMENT`."""
    return b"".join(document.text + bytes([END_OF_DOCUMENT]) for document in documents)


def _digest(document: Document) -> bytes:
    return hashlib.sha256(document.text).digest()


def _without(name: str, split: Split, seen: set[bytes]) -> Split:
    validation = [document for document in split.validation if _digest(document) not in seen]
    if not split.train or not validation:
        count = sum(len(document.text) for document in split.train + split.validation)
        raise ValueError(
            f"Domain {name!r} has {count} bytes of distinct text, too few to keep a tenth for validation "
            "that is not also training text: give it more, or longer, files."
        )
    return Split(split.train, validation)


def _cut(documents: list[Document]) -> Split:
    """Cut at the document boundary nearest to the target, or inside the document that spans the target."""
    ends = [0, *accumulate(len(document.text) for document in documents)]
    target = round(ends[-1] * (1 - VALIDATION_SHARE))
    boundary = min(range(1, len(documents)), key=lambda place: abs(ends[place] - target), default=0)
    if boundary and abs(ends[boundary] - target) <= _TOLERANCE * ends[-1]:
        return Split(documents[:boundary], documents[boundary:])
    place = bisect_right(ends, target) - 1
    if place >= len(documents):
        return Split(documents, [])
    head, tail = _halve(documents[place], target - ends[place])
    return Split([*documents[:place], *head], [*tail, *documents[place + 1 :]])


def _halve(document: Document, target: int) -> tuple[list[Document], list[Document]]:
    """Both parts of a document cut after the line end next to `target`, else between two characters."""
    text = document.text
    at = text.find(b"\n", target, len(text) - 1) + 1 or text.rfind(b"\n", 0, target) + 1 or target
    while 0 < at < len(text) and text[at] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        at -= 1
    parts = (Document(f"{document.name}[:{at}]", text[:at]), Document(f"{document.name}[{at}:]", text[at:]))
    return drop_duplicates(parts[:1]), drop_duplicates(parts[1:])
