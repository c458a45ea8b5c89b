"""A corpus of the user's own: what is read, in which order, and what is refused with which words."""

import os
import re
from pathlib import Path

import pytest

from moegate.lab.data import text
from moegate.lab.data.folder import read_folder


def write(path: Path, content: bytes = b"some text\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(folder: Path) -> dict[str, list[str]]:
    return {domain: [document.name for document in found] for domain, found in read_folder(folder).items()}


def test_domains_and_files_are_sorted_by_bytes(tmp_path: Path) -> None:
    for name in ["b/2", "b/10", "b/Z/1", "b/a/1", "b/é", "B/x", "a/x"]:
        write(tmp_path / name)
    assert names(tmp_path) == {"B": ["x"], "a": ["x"], "b": ["10", "2", "Z/1", "a/1", "é"]}
    assert list(names(tmp_path)) == ["B", "a", "b"]


def test_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    content = "naïve\r\n".encode("latin-1") + b"\xff\xfe \x01\x7f no line end"
    write(tmp_path / "mixed" / "file", content)
    assert read_folder(tmp_path)["mixed"][0].text == content


def test_hidden_and_empty_files_are_skipped(tmp_path: Path) -> None:
    for name in ["d/.DS_Store", "d/.git/config", "d/x/.hidden/y", ".git/config", "stray.txt"]:
        write(tmp_path / name)
    write(tmp_path / "d" / "empty", b"")
    write(tmp_path / "d" / "kept")
    assert names(tmp_path) == {"d": ["kept"]}


def test_hostile_file_names(tmp_path: Path) -> None:
    hostile = ["a\nb", "quote'\"", "[red]", "-rf", "two  spaces ", "tab\t", "ü" * 60, "%s{0}", "🙂.txt", "x.zip"]
    for number, name in enumerate(hostile):
        write(tmp_path / "domain" / name, b"text %d" % number)
    (tmp_path / "domain" / os.fsdecode(b"latin-\xe9")).write_bytes(b"not UTF-8 in the name")
    assert set(names(tmp_path)["domain"]) == {*hostile, os.fsdecode(b"latin-\xe9")}
    assert text.load(tmp_path).names == ("domain",)


@pytest.mark.parametrize("name", ["line\nbreak", os.fsdecode(b"latin-\xe9"), "bell\a", "right\u202eleft"])
def test_a_domain_name_that_cannot_be_shown_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "file")
    with pytest.raises(ValueError, match="printable") as caught:
        read_folder(tmp_path)
    str(caught.value).encode()  # the message itself can be printed


def test_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside / "book", b"a book\n")
    corpus = tmp_path / "corpus"
    write(corpus / "real" / "own")
    (corpus / "linked").symlink_to(outside)
    (corpus / "real" / "file-link").symlink_to(outside / "book")
    (corpus / "real" / "up").symlink_to(corpus)  # a loop
    (corpus / "real" / "folder-link").symlink_to(outside)
    assert names(corpus) == {"linked": ["book"], "real": ["file-link", "own"]}


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    write(tmp_path / "d" / "fine")
    (tmp_path / "d" / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"Cannot read the corpus file '.*broken': No such file"):
        read_folder(tmp_path)


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    write(tmp_path / "d" / "fine")
    (tmp_path / "d" / "self").symlink_to(tmp_path / "d" / "self")
    with pytest.raises(ValueError, match=r"Cannot read the corpus file '.*self'"):
        read_folder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.timeout(20)
def test_a_named_pipe_is_skipped_and_does_not_block(tmp_path: Path) -> None:
    write(tmp_path / "d" / "fine")
    os.mkfifo(tmp_path / "d" / "pipe")
    assert names(tmp_path) == {"d": ["fine"]}


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0", "text".encode("utf-16"), b"text" * 5000 + b"\0"])
def test_binary_files_are_refused_with_the_place(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "d" / "fine")
    path = write(tmp_path / "d" / "odd", content)
    expected = rf"{re.escape(repr(str(path)))} is binary.*offset {content.index(0)}\)"
    with pytest.raises(ValueError, match=expected):
        read_folder(tmp_path)


def test_no_subfolders(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / ".hidden" / "a.txt")
    with pytest.raises(ValueError, match="has no subfolders: make one subfolder a domain"):
        read_folder(tmp_path)


@pytest.mark.parametrize("content", [None, b""], ids=["no file", "an empty file"])
def test_a_domain_without_text(tmp_path: Path, content: bytes | None) -> None:
    write(tmp_path / "full" / "file")
    (tmp_path / "void").mkdir()
    if content is not None:
        write(tmp_path / "void" / "file", content)
    with pytest.raises(ValueError, match=r"'.*void' has no text"):
        read_folder(tmp_path)


@pytest.mark.parametrize(("name", "reason"), [("absent", "does not exist"), ("file", "is a file")])
def test_no_such_folder(tmp_path: Path, name: str, reason: str) -> None:
    write(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=reason):
        read_folder(tmp_path / name)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, so the refusal is simulated at the call that would get it."""
    path = write(tmp_path / "d" / "secret")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match=rf"{re.escape(repr(str(path)))}: Permission denied"):
        read_folder(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d" / "file")
    listing = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "d":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"Cannot list the folder '.*d': Permission denied"):
        read_folder(tmp_path)


def test_load_reads_the_folder_anew_each_time(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / "d" / f"{number:02d}", b"page %d\n" % number)
    before = text.load(tmp_path)
    assert bytes(before.domains[0].validation.tolist()) == b"page 18\n\0page 19\n\0"
    write(tmp_path / "d" / "19", b"another\n")
    after = text.load(str(tmp_path))
    assert bytes(after.domains[0].validation.tolist()) == b"page 18\n\0another\n\0"
    assert before.fingerprint != after.fingerprint


def test_the_same_text_elsewhere_has_another_fingerprint_only_by_its_text(tmp_path: Path) -> None:
    for place in ("here", "there"):
        for number in range(20):
            write(tmp_path / place / "d" / f"{number:02d}", b"page %d\n" % number)
    assert text.load(tmp_path / "here").fingerprint == text.load(tmp_path / "there").fingerprint


def test_choosing_domains_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave subfolders out"):
        text.load(tmp_path, domains=["d"])
