"""Message catalogues, against Python's own gettext and a catalogue written by hand."""

import gettext
import io
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from moegate.lab.data import translations as translation_sources
from moegate.lab.data.packages import package_folder
from moegate.lab.data.translations import read_catalogue, translations


def catalogue(messages: dict[bytes, bytes], order: str) -> bytes:
    """A compiled catalogue, laid out as the gettext manual says, without its hash table."""
    strings = io.BytesIO()
    start = 28 + 16 * len(messages)
    tables: list[bytes] = []
    for column in (list(messages), list(messages.values())):
        for string in column:
            tables.append(struct.pack(f"{order}2I", len(string), start + strings.tell()))
            strings.write(string + b"\0")
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    return head + b"".join(tables) + strings.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
def test_all_kinds_of_messages(order: str) -> None:
    content = catalogue(
        {
            b"": b"Content-Type: text/plain; charset=UTF-8\n",
            b"Delete": "Löschen".encode(),
            b"menu\4Open": "Öffnen".encode(),
            b"%d file\0%d files": b"%d Datei\0%d Dateien",
            b"OK": b"OK",
            b"toolbar\4OK": b"OK",
            b"unknown": b"",
            b"blank": b"  \n",
            b"padded": b"\nKopf\n",
        },
        order,
    )
    assert [(original, form.decode()) for original, form in read_catalogue(content)] == [
        (b"Delete", "Löschen"),
        (b"Open", "Öffnen"),
        (b"%d file", "%d Datei"),
        (b"%d file", "%d Dateien"),
        (b"padded", "Kopf"),
    ]


def real_catalogues() -> Iterator[Path]:
    for module in ("django", "trac"):
        for locale in ("de", "ja"):
            yield from package_folder(module, "tests").rglob(f"locale/{locale}/LC_MESSAGES/*.mo")


def test_real_catalogues_agree_with_gettext() -> None:
    checked = 0
    for path in real_catalogues():
        with path.open("rb") as file:
            known = gettext.GNUTranslations(file)
        single, plural = set(), set()
        for key, value in known._catalog.items():  # type: ignore[attr-defined]
            (plural if isinstance(key, tuple) else single).add(value.strip())
        forms = {form.decode() for _, form in read_catalogue(path.read_bytes())}
        assert forms <= single | plural
        untranslated = {key.rpartition("\4")[2].strip() for key in known._catalog if isinstance(key, str)}  # type: ignore[attr-defined]
        header = known._catalog[""].strip()  # type: ignore[attr-defined]
        assert single - untranslated - {"", header} <= forms
        checked += len(forms)
    assert checked > 2000


def test_a_repeated_translation_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, locale, messages in [
        ("django", "xx", {b"Save": b"first", b"Store": b"first", b"Drop": b"second"}),
        ("django", "xx_YY", {b"Save": b"first", b"Drop": b"second variant"}),
        ("trac", "xx", {b"Other": b"second", b"New": b"third"}),
        ("trac", "zz", {b"New": b"another language"}),
    ]:
        folder = tmp_path / module / "locale" / locale / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "messages.mo").write_bytes(catalogue(messages, "<"))
    monkeypatch.setattr(translation_sources, "package_folder", lambda module, wanted: tmp_path / module)
    assert [document.text for document in translations("xx", "xx_YY")] == [
        b"first\nsecond\nsecond variant\n",
        b"third\n",
    ]


def test_no_message_is_in_two_documents_and_variants_stay_together() -> None:
    documents = list(translations("es", "es_AR", "es_MX"))
    lines = [message for document in documents for message in set(document.text.splitlines()) if len(message) > 40]
    assert len(lines) > 500
    assert len(lines) - len(set(lines)) <= len(lines) // 50  # second lines of two messages may agree
    place = {message: number for number, document in enumerate(documents) for message in document.text.splitlines()}
    together = [
        (forms[b"es"], forms[b"es_AR"])
        for forms in by_original("es", "es_AR").values()
        if len(forms) == 2 and forms[b"es"] != forms[b"es_AR"] and all(len(f) > 40 for f in forms.values())
    ]
    assert len(together) > 50
    apart = [pair for pair in together if place.get(pair[0]) != place.get(pair[1])]
    # A message that several originals share stays with the first of them.
    assert len(apart) <= len(together) // 20


def by_original(*locales: str) -> dict[bytes, dict[bytes, bytes]]:
    """Original -> locale -> one-line translation, of Django's core messages."""
    found: dict[bytes, dict[bytes, bytes]] = {}
    for locale in locales:
        path = package_folder("django", "tests") / "conf" / "locale" / locale / "LC_MESSAGES" / "django.mo"
        for original, form in read_catalogue(path.read_bytes()):
            if b"\n" not in form:
                found.setdefault(original, {}).setdefault(locale.encode(), form)
    return found
