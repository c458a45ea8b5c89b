"""Read a corpus of the user's own: a folder with one subfolder a domain."""

import os
import stat
from pathlib import Path

from moegate.lab.data.documents import END_OF_DOCUMENT, Document


def read_folder(folder: Path) -> dict[str, list[Document]]:
    """The documents of every subfolder, one a file, in the order of their paths' bytes.

    Files are taken as bytes, whatever their encoding. Skipped: names that begin with a dot, empty files, and
    anything that is not a regular file. A link to a file or to a domain's folder is followed, a link to a
    folder further down is not (it may lead back up).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no subfolder, a domain without text, a binary or unreadable file; the message names it.
    """
    if not folder.is_dir():
        reason = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"The corpus folder {str(folder)!r} {reason}: give a folder with one subfolder a domain."
        )
    names = sorted((entry.name for entry in _scan(folder) if _is_domain(entry)), key=os.fsencode)
    if not names:
        raise ValueError(
            f"The corpus folder {str(folder)!r} has no subfolders: make one subfolder a domain, such as "
            f"{str(folder / 'english')!r}, and put its text files there."
        )
    return {_printable(folder, name): _read_domain(folder / name) for name in names}


def _is_domain(entry: "os.DirEntry[str]") -> bool:
    return _is_folder(entry) and not entry.name.startswith(".")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Also for a link to a folder; a link that leads nowhere counts as a file, and reading it says why."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _scan(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ValueError(f"Cannot list the folder {str(folder)!r}: {error.strerror}.") from error


def _printable(folder: Path, name: str) -> str:
    if name.isprintable():
        return name
    raise ValueError(
        f"The corpus folder {str(folder)!r} has a subfolder named {name!r}: it becomes the domain's name in "
        "tables and files, so give it a name of printable characters."
    )


def _read_domain(folder: Path) -> list[Document]:
    documents = [document for path in _files(folder) if (document := _read(path, folder)) is not None]
    if not documents:
        raise ValueError(f"The corpus domain {str(folder)!r} has no text: add files to it, or remove the folder.")
    return documents


def _files(folder: Path) -> list[Path]:
    """All files below `folder` that are not hidden, sorted by the bytes of their relative path."""
    found: list[Path] = []
    pending = [folder]
    while pending:
        for entry in _scan(pending.pop()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            elif not _is_folder(entry):
                found.append(Path(entry.path))
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(folder).as_posix()))


def _read(path: Path, folder: Path) -> Document | None:
    """The file as a document; None for an empty file or one that is not regular (a pipe would block)."""
    try:
        text = path.read_bytes() if stat.S_ISREG(path.stat().st_mode) else b""
    except OSError as error:
        raise ValueError(f"Cannot read the corpus file {str(path)!r}: {error.strerror}.") from error
    if (zero := text.find(END_OF_DOCUMENT)) >= 0:
        raise ValueError(
            f"The corpus file {str(path)!r} is binary, or UTF-16 text (a zero byte at offset {zero}): "
            "remove it, or save it as UTF-8."
        )
    return Document(path.relative_to(folder).as_posix(), text) if text else None
