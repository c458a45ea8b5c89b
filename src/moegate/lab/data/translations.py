"""Sentences in other languages: the message catalogues of Django and Trac, written by their translators."""

import struct
from collections.abc import Iterator
from itertools import chain

from moegate.lab.data.documents import Document
from moegate.lab.data.packages import package_folder

_MAGIC = 0x950412DE
_MESSAGES_PER_DOCUMENT = 40


def translations(*locales: str) -> Iterator[Document]:
    """All distinct translations in the given locales, 40 messages to a document; none is in two documents.

    The translations of one English message stay together, because regional variants of a language differ
    little and would otherwise put nearly the same sentence into both splits.
    """
    seen: set[bytes] = set()
    for module in ("django", "trac"):
        root = package_folder(module, "The translated messages")
        by_original: dict[bytes, list[bytes]] = {}
        for path in sorted(p for name in locales for p in root.rglob(f"locale/{name}/LC_MESSAGES/*.mo")):
            for original, form in read_catalogue(path.read_bytes()):
                if form not in seen:
                    seen.add(form)
                    by_original.setdefault(original, []).append(form)
        yield from _pages(f"{module}/{'+'.join(locales)}", list(by_original.values()))


def _pages(name: str, messages: list[list[bytes]]) -> Iterator[Document]:
    for start in range(0, len(messages), _MESSAGES_PER_DOCUMENT):
        forms = chain.from_iterable(messages[start : start + _MESSAGES_PER_DOCUMENT])
        yield Document(f"{name}:{start}", b"\n".join(forms) + b"\n")


def read_catalogue(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(original, translation) pairs of a compiled catalogue: plural forms apart, untranslated ones left out.

    Source: GNU gettext manual, "The Format of GNU MO Files".
    """
    order = "<" if struct.unpack_from("<I", content)[0] == _MAGIC else ">"
    _, _, count, originals, translated = struct.unpack_from(f"{order}5I", content)
    for row in range(count):
        sources = _string(content, order, originals + 8 * row).rpartition(b"\4")[2].split(b"\0")
        if not sources[0]:  # the header of the catalogue
            continue
        for form in _string(content, order, translated + 8 * row).split(b"\0"):
            if form.strip() and form not in sources:
                yield sources[0], form.strip()


def _string(content: bytes, order: str, entry: int) -> bytes:
    length, offset = struct.unpack_from(f"{order}2I", content, entry)
    return content[offset : offset + length]
