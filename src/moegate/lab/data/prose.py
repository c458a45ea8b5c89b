"""English prose: what the authors of Python, NumPy and scikit-learn wrote to explain their work."""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from moegate.lab.data.documents import END_OF_DOCUMENT, Document
from moegate.lab.data.packages import files_below, package_folder

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_SHORTEST = 300
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_EXAMPLE = re.compile(r"^[ \t]*>>>.*(\n[ \t]*\S.*)*\n?", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n")


def english_prose() -> Iterator[Document]:
    """The Python language reference of `pydoc`, and the docstrings of NumPy and scikit-learn."""
    yield from _language_reference()
    for module in ("numpy", "sklearn"):
        root = package_folder(module, "The English docstrings")
        for path in files_below(root, {".py"}, {"test", "tests"}):
            yield from _docstrings(path, root.parent)


def _language_reference() -> Iterator[Document]:
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    if not path.is_file():  # some Linux distributions package it apart
        return
    tree = ast.parse(path.read_bytes())
    for table in (node for node in ast.walk(tree) if isinstance(node, ast.Dict)):
        for topic, text in ast.literal_eval(table).items():
            yield from _prose(f"topics/{topic}", text)


def _docstrings(path: Path, root: Path) -> Iterator[Document]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes are none of the user's business
        tree = ast.parse(path.read_bytes())
    for node in _definitions(tree):
        if text := ast.get_docstring(node):
            name = getattr(node, "name", "")
            yield from _prose(f"{path.relative_to(root).as_posix()}:{name}", text)


def _definitions(node: Definition) -> Iterator[Definition]:
    """The module, class or function itself, and what is defined directly inside."""
    yield node
    for child in node.body:
        if isinstance(child, _DEFINITIONS):
            yield from _definitions(child)


def _prose(name: str, text: str) -> Iterator[Document]:
    """The text without its interactive examples, when enough of it is left."""
    prose = _BLANK_LINES.sub("\n\n", _EXAMPLE.sub("", text)).strip() + "\n"
    encoded = prose.encode("utf-8", errors="ignore")
    if len(encoded) >= _SHORTEST and END_OF_DOCUMENT not in encoded:
        yield Document(name, encoded)
