"""Find the files of installed packages without importing the packages."""

import os
from collections.abc import Collection, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


def package_folder(module: str, wanted_for: str) -> Path:
    """The folder that `import module` would load, found without loading it.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says which extra brings it.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{wanted_for} come from the package {module!r}, which is not installed: "
            "in the clone, run pip install '.[lab]'.",
            name=module,
        )
    return Path(spec.origin).parent


def files_below(root: Path, suffixes: Collection[str], skipped_folders: Collection[str] = ()) -> Iterator[Path]:
    """The regular files with one of the suffixes, in no particular order."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skipped_folders]
        for name in names:
            path = Path(folder, name)
            if path.suffix in suffixes and path.is_file():
                yield path


def package_version(distribution: str) -> str:
    """The installed version of a distribution.

    Example:
        >>> package_version("torch").split(".")[0]
        '2'
    """
    return version(distribution)
