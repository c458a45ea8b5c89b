"""Peers that are installed, or that a folder brings: unpacked wheels, for machines where nothing can be installed."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from moegate.bench.peers.finding import PeerMissing

VARIABLE = "MOEGATE_PEERS"
"""The environment variable that names folders with unpacked wheels, one in another or all in one."""


def carried_file(path: str) -> Path:
    """A file of a package, by its path from where the package is imported.

    Raises:
        PeerMissing: the package is neither installed nor carried.
    """
    for folder in _folders():
        if (folder / path).exists():
            return folder / path
    raise _missing(path.split("/", 1)[0])


def carried_module(name: str) -> ModuleType:
    """A module of a package that is installed or carried, imported.

    Raises:
        PeerMissing: the package is neither, or it can't be imported.
    """
    package = name.split(".", 1)[0]
    if importlib.util.find_spec(package) is None:
        folder = next((folder for folder in _folders() if (folder / package / "__init__.py").exists()), None)
        if folder is None:
            raise _missing(package)
        sys.path.append(str(folder))  # last, so that nothing that is installed is replaced
    try:
        return importlib.import_module(name)
    except Exception as error:
        sentence = str(error).strip().splitlines() or [type(error).__name__]
        raise PeerMissing(f"{name} can't be imported: {sentence[0][:200]}") from error


def shorten(kernel: Any, most: int) -> None:
    """Leaves an autotuned kernel at most so many of its configurations, spread over all: trying each takes minutes.

    In Triton's interpreter, where nothing can be tuned, it leaves one. What is no autotuned kernel stays as it is.
    """
    from triton import knobs
    from triton.runtime.autotuner import Autotuner

    if isinstance(kernel, Autotuner):
        step = -(-len(kernel.configs) // (1 if knobs.runtime.interpret else most))
        kernel.configs = kernel.configs[::step]


def _folders() -> list[Path]:
    named = [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    inside = [child for folder in named if folder.is_dir() for child in sorted(folder.iterdir()) if child.is_dir()]
    return [*named, *inside, *(Path(folder) for folder in sys.path if folder)]


def _missing(package: str) -> PeerMissing:
    return PeerMissing(f"{package} is neither installed nor in a folder of {VARIABLE}")
