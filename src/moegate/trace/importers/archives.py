"""Zip archives of strangers: what is in them, whole members only."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["member_names", "members"]

# What zipfile raises for an archive that is cut, damaged, encrypted, or compressed in a way it doesn't know.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, OSError),
    *(ValueError, KeyError, IndexError),
)

MOST_BYTES = 2**32
"""A small archive can unpack to any size. Larger arrays come as a .npy file, whose size is what it is."""


def member_names(path: Path) -> list[str]:
    """The names in an archive; none if it can't be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except _DAMAGED:
        return []


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each member's name and content; a ``ValueError`` for an archive that is cut or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"it says that it unpacks to {size:,} bytes, and at most {MOST_BYTES:,} are read")
            found = [(member.filename, archive.read(member)) for member in archive.infolist()]
    except _DAMAGED as error:
        raise ValueError(f"{path} is cut or damaged: {' '.join(str(error).split())[:200]}") from None
    yield from found
