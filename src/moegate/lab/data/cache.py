"""Where prepared data is kept, and writes that are either complete or absent."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

_STALE_SECONDS = 3600.0
_UNFINISHED = ".unfinished-"


def cache_root() -> Path:
    """The cache folder: `$MOEGATE_CACHE`, else `$XDG_CACHE_HOME/moegate`, else `~/.cache/moegate`.

    Source: XDG Base Directory Specification 0.8 (a relative `XDG_CACHE_HOME` is to be ignored).
    """
    if own := os.environ.get("MOEGATE_CACHE"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "moegate"


def write_file(path: Path, content: bytes) -> None:
    """Write `path` so that a reader, or the next run after a kill, sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _write_through(file.fileno(), content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Make `folder` with exactly these files, all at once: it appears under its name only when complete.

    An existing folder of that name is replaced. When another process finishes the same folder first, its
    folder stays: contents are a function of the name, so both are the same.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    building = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    try:
        for name, content in contents.items():
            with (building / name).open("wb") as file:
                _write_through(file.fileno(), content)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_through(descriptor: int, content: bytes) -> None:
    """Write everything and reach the disk, so that a power cut after the rename leaves no empty file."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _remove_stale(parent: Path) -> None:
    """Clear what killed processes left, old enough that no live process is still writing it."""
    for leftover in parent.glob(f"{_UNFINISHED}*"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        except OSError:
            continue
