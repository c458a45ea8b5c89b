"""CSV of llama.cpp's tools.

- ``moe-trace`` (a pull request of 2026): a line ``layer,expert`` for each routed activation. Which tokens they are of
  is not said, so that only loads can be read.
- The tracer of okuvshynov: a line ``layer_id,"e1 e2 ..."`` for each token in each layer, which is a trace.

The names of the columns, if there are any, may differ; the order is layer, then expert or experts. Semicolons and tabs
are taken for commas, and commas between the experts of a quoted cell for spaces.
"""

import csv
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moegate.trace.importers.building import Document, loads_of, trace_of
from moegate.trace.importers.hints import Hints
from moegate.trace.loads import Loads
from moegate.trace.trace import Trace

__all__ = ["read_activations", "read_tokens", "recognises_activations", "recognises_tokens"]

_HEAD = 4096
_ACTIVATION = re.compile(rb"^\s*\d+\s*[,;\t]\s*\d+\s*$")
_TOKEN = re.compile(rb"^\s*\d+\s*[,;\t]\s*(\d+( +\d+)+|\"\s*\d+([, ]+\d+)*\s*\")\s*$")


def recognises_activations(_: Path, head: bytes) -> bool:
    """Whether the first lines of a file are ``layer,expert``."""
    return _second_line(head, _ACTIVATION)


def recognises_tokens(_: Path, head: bytes) -> bool:
    """Whether the first lines of a file are ``layer,"e1 e2 ..."``."""
    return _second_line(head, _TOKEN)


def read_activations(path: Path, hints: Hints) -> Loads:
    """Loads of ``layer,expert`` lines."""
    counts = _counted_at_once(path.read_bytes())
    if counts is None:
        counts = Counter()
        for where, layer, experts in _rows(path):
            if len(experts) != 1:
                raise ValueError(f"{path}, {where}: {len(experts)} experts; expected layer,expert.")
            counts[layer, experts[0]] += 1
    named: dict[str, dict[int, float]] = {}
    for (layer, expert), count in sorted(counts.items()):
        named.setdefault(f"layer {layer}", {})[expert] = count
    return loads_of(named, path, "llama.cpp", hints)


def _counted_at_once(content: bytes) -> Counter[tuple[int, int]] | None:
    """How often each layer and expert come, for a file of nothing but plain lines, which may be long; None for others,
    whose lines are then looked at one by one."""
    names, _, rest = content.replace(b"\r\n", b"\n").partition(b"\n")
    lines = (names + b"\n" + rest if names[:1].isdigit() else rest).removesuffix(b"\n")
    shape = lines.translate(None, b"0123456789")
    if shape != b",\n" * shape.count(b"\n") + b"," or re.search(rb"[0-9]{10}|(^|[,\n])[,\n]|,$", lines):
        return None
    pairs_N2 = np.array(lines.replace(b",", b" ").split(), dtype=np.int64).reshape(-1, 2)
    found, count = np.unique(pairs_N2, axis=0, return_counts=True)
    return Counter(dict(zip(map(tuple, found.tolist()), count.tolist(), strict=True)))


def read_tokens(path: Path, hints: Hints) -> Trace:
    """The trace of ``layer,"e1 e2 ..."`` lines: the lines of each layer are the tokens in their order."""
    columns: dict[int, array[int]] = {}
    top_k = 0
    for where, layer, experts in _rows(path):
        top_k = top_k or len(experts)
        if len(experts) != top_k:
            raise ValueError(f"{path}, {where}: {len(experts)} experts, but the lines before have {top_k}.")
        columns.setdefault(layer, array("i")).extend(experts)
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        fewest, most = (pick(columns, key=lambda layer: len(columns[layer])) for pick in (min, max))
        raise ValueError(
            f"{path} is cut, or holds other things: layer {fewest} has {len(columns[fewest]) // top_k} lines, layer "
            f"{most} has {len(columns[most]) // top_k}."
        )
    if not columns:
        raise ValueError(f"{path} holds no routed experts.")
    order = sorted(columns)
    indices_TLK = np.stack([np.frombuffer(columns[layer], np.intc).reshape(-1, top_k) for layer in order], axis=1)
    names = [f"layer {layer}" for layer in order]
    return trace_of([Document(indices_TLK, "the file")], path, "llama.cpp-tokens", hints, layers=names)


def _rows(path: Path) -> Iterator[tuple[str, int, list[int]]]:
    """Where a line is, its layer and its experts; a first line of names is left out."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        try:
            for number, row in enumerate(csv.reader(lines, delimiter=_delimiter(path), skipinitialspace=True), start=1):
                cells = [cell.strip() for cell in row]
                if not any(cells) or (number == 1 and not cells[0].isdigit()):
                    continue
                yield f"line {number}", *_numbers(path, number, cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no CSV: {error}.") from None


def _numbers(path: Path, number: int, cells: list[str]) -> tuple[int, list[int]]:
    layer, experts = cells[0], cells[1].replace(",", " ").split() if len(cells) == 2 else []
    # Ten digits hold no layer and no expert, and a long number takes Python long to read.
    if not experts or not all(cell.isascii() and cell.isdigit() and len(cell) < 10 for cell in (layer, *experts)):
        raise ValueError(
            f'{path}, line {number}: {",".join(cells)[:60]!r} is neither layer,expert nor layer,"expert expert ...", '
            "in whole numbers from 0."
        )
    return int(layer), [int(expert) for expert in experts]


def _delimiter(path: Path) -> str:
    """What stands behind the first number of the first line that begins with one."""
    with path.open("rb") as lines:
        found = (re.match(rb"\s*\d+\s*([,;\t])", line) for line in lines.readlines(_HEAD))
        return next((match[1].decode() for match in found if match), ",")


def _second_line(head: bytes, pattern: re.Pattern[bytes]) -> bool:
    """Whether the second line, or the only one, is of a kind: the first may be names."""
    lines = [line for line in head.splitlines() if line.strip()][:2]
    return bool(lines) and bool(pattern.match(lines[-1].removeprefix(b"\xef\xbb\xbf")))
