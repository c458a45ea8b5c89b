"""The default domains: what each is made of, under which licence, and how much of it is taken."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from moegate.lab.data.code_files import javascript_sources, python_sources, torch_headers
from moegate.lab.data.documents import Document, drop_duplicates
from moegate.lab.data.prose import english_prose
from moegate.lab.data.translations import translations

LARGEST_DOMAIN = 3_000_000
"""Bytes taken of a domain at most, so that none dominates."""

_BSD = "BSD-3-Clause"


@dataclass(frozen=True)
class Source:
    """Where the text of a domain comes from."""

    read: Callable[[], Iterable[Document]]
    distributions: tuple[str, ...]
    """The installed distributions it is read from; "python" is the interpreter itself."""
    description: str
    licence: str


def _language(*locales: str) -> Source:
    return Source(
        partial(translations, *locales),
        ("Django", "Trac"),
        f"Django, Trac: messages in {', '.join(locales)}",
        _BSD,
    )


SOURCES: dict[str, Source] = {
    "python": Source(python_sources, ("python",), "CPython: standard library", "PSF-2.0"),
    "cpp": Source(torch_headers, ("torch",), "PyTorch: C++ headers", _BSD),
    "javascript": Source(
        javascript_sources, ("Django", "Trac"), "Django, Trac: scripts", f"{_BSD}; MIT (jQuery, Select2)"
    ),
    "english": Source(
        english_prose,
        ("python", "numpy", "scikit-learn"),
        "CPython: language reference; NumPy, scikit-learn: docstrings",
        f"PSF-2.0; {_BSD}",
    ),
    "french": _language("fr"),
    "german": _language("de"),
    "spanish": _language("es", "es_AR", "es_MX"),
    "russian": _language("ru"),
    "chinese": _language("zh_Hans", "zh_CN", "zh_Hant", "zh_TW"),
    "japanese": _language("ja"),
}
"""Domain -> its source, in the order of tables and of domain ids."""


def select_sources(domains: Sequence[str] | None) -> dict[str, Source]:
    """The named sources, in the order of `SOURCES`; all of them for None.

    Raises:
        ValueError: an unknown domain (with the nearest known one), or no domain at all.

    Example:
        >>> list(select_sources(["python", "cpp"]))
        ['python', 'cpp']
    """
    if domains is None:
        return dict(SOURCES)
    if not domains or isinstance(domains, str):
        raise ValueError(f"domains is {domains!r}: give a list of names out of {', '.join(SOURCES)}.")
    for name in domains:
        if name not in SOURCES:
            near = get_close_matches(name, SOURCES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SOURCES)}."
            raise ValueError(f"Unknown domain {name!r}: {hint}")
    return {name: source for name, source in SOURCES.items() if name in domains}


def read_source(source: Source) -> list[Document]:
    """Distinct documents of a source up to `LARGEST_DOMAIN` bytes, in an order that mixes its folders.

    The order is that of the hashes of the names: it depends on no listing order, and the tenth that becomes
    validation text is a sample of the whole instead of the last folder of the alphabet.
    """
    documents = drop_duplicates(sorted(source.read(), key=_scattered))
    chosen, total = [], 0
    for document in documents:
        if total + len(document.text) <= LARGEST_DOMAIN:
            chosen.append(document)
            total += len(document.text)
    return chosen


def _scattered(document: Document) -> tuple[bytes, bytes]:
    """Sort key: the hash of the name; documents of one name (overloads of a function) by their text."""
    return hashlib.sha256(document.name.encode("utf-8", "surrogateescape")).digest(), document.text
