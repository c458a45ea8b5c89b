"""Source code that comes with Python and with packages every installation of the lab has."""

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moegate.lab.data.documents import END_OF_DOCUMENT, Document
from moegate.lab.data.packages import files_below, package_folder

_NOT_PROGRAMS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
_TORCH_FOLDERS = ("ATen", "c10", "caffe2", "torch")
_TRANSLATED_SCRIPTS = {"i18n", "messages"}
_LONG_LINE = re.compile(rb"[^\n]{2000}")


def python_sources() -> Iterator[Document]:
    """CPython's standard library without its tests, its character tables and its documentation."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in files_below(library, {".py"}, _NOT_PROGRAMS):
        if not path.name.startswith("_sysconfigdata"):  # the paths and flags of whoever built this Python
            yield from _read(path, library)


def torch_headers() -> Iterator[Document]:
    """PyTorch's own C++ headers, without generated ones (thousands of near copies) and bundled libraries."""
    include = package_folder("torch", "The C++ headers") / "include"
    for folder in _TORCH_FOLDERS:
        for path in files_below(include / folder, {".h", ".hpp", ".cuh"}):
            yield from (header for header in _read(path, include) if b"@generated" not in header.text)


def javascript_sources() -> Iterator[Document]:
    """The scripts of Django's admin pages and of Trac's pages."""
    for module in ("django", "trac"):
        root = package_folder(module, "The JavaScript sources")
        for path in files_below(root, {".js"}, _TRANSLATED_SCRIPTS):
            yield from (script for script in _read(path, root.parent) if not _is_minified(script))


def _is_minified(script: Document) -> bool:
    return _LONG_LINE.search(script.text) is not None


def _read(path: Path, root: Path) -> Iterator[Document]:
    """The file as a document, or nothing when it is not text."""
    text = path.read_bytes()
    if END_OF_DOCUMENT not in text:
        yield Document(path.relative_to(root).as_posix(), text)
