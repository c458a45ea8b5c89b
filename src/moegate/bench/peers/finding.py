"""Peers are found by the records of their installation: nothing of theirs is imported to see whether they are here."""

import importlib.metadata
from pathlib import Path


class PeerMissing(Exception):
    """A peer that can't take part here; the message says why."""


def installed_file(distribution: str, path: str) -> Path:
    """Where a file of an installed distribution is.

    Raises:
        PeerMissing: the distribution, or the file, is not here.

    Example:
        >>> installed_file("torch", "torch/__init__.py").name
        '__init__.py'
    """
    try:
        found = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        raise PeerMissing(f"{distribution} is not installed; make bench installs it") from None
    if not found.exists():
        raise PeerMissing(f"{distribution} {importlib.metadata.version(distribution)} has no {path}")
    return found
