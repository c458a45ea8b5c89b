"""Traces that grow: chunks of rows in memory up to a limit, on disk beyond it, and a file at the end."""

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moegate.trace.container import Entry, Place, data_of, read_tensor, write_container

__all__ = ["Column", "Columns", "Kind"]

_PIECE = 1 << 23  # bytes that are read at a time when a file is put together


class Kind(NamedTuple):
    """What a column holds: its dtype, what fills empty places, and the shape of a row, at least."""

    dtype: torch.dtype
    fill: float
    width: tuple[int, ...] = ()


class Column:
    """One tensor that grows by rows. Rows are as wide as the widest chunk; narrower ones are filled up."""

    def __init__(self, kind: Kind):
        self.dtype, self.fill, self.width = kind
        self.rows = 0
        self.chunks: list[Tensor] = []
        self.part: Path | None = None
        self.rows_on_disk = 0

    def append(self, chunk: Tensor) -> int:
        """Adds rows; returns the bytes that they take in memory."""
        chunk = chunk.to(self.dtype)
        widest = tuple(max(pair) for pair in zip(chunk.shape[1:], self.width, strict=True))
        self._widen(widest)
        chunk = _filled(chunk, widest, self.fill)
        self.chunks.append(chunk)
        self.rows += chunk.shape[0]
        return chunk.numel() * chunk.element_size()

    def spill(self, part: Path) -> None:
        """Moves the rows in memory to the end of the part file."""
        self.part = part
        part.touch()
        with part.open("r+b") as file:
            # What a failed attempt has left (a full disk) is written over.
            file.seek(self._bytes(self.rows_on_disk))
            for chunk in self.chunks:
                file.write(data_of(chunk))
        self.rows_on_disk = self.rows
        self.chunks.clear()

    def tensor(self) -> Tensor:
        """All rows; those on disk are mapped."""
        if self.part is not None:
            if self.chunks:
                self.spill(self.part)
            return self._mapped()
        if len(self.chunks) > 1:
            self.chunks = [torch.cat(self.chunks)]
        return self.chunks[0] if self.chunks else torch.zeros(0, *self.width, dtype=self.dtype)

    def entry(self) -> Entry:
        """The column as a tensor to be written, piece by piece."""
        return Entry(self.dtype, (self.rows, *self.width), self._pieces())

    def _pieces(self) -> Iterator[memoryview]:
        if self.part is not None:
            left = self._bytes(self.rows_on_disk)
            with self.part.open("rb") as file:
                while left and (piece := file.read(min(_PIECE, left))):
                    left -= len(piece)
                    yield memoryview(piece)
        for chunk in self.chunks:
            yield data_of(chunk)

    def _mapped(self) -> Tensor:
        assert self.part is not None
        shape = (self.rows_on_disk, *self.width)
        return read_tensor(self.part, Place(self.dtype, shape, 0, self._bytes(self.rows_on_disk)))

    def _bytes(self, rows: int) -> int:
        return rows * math.prod(self.width) * self.dtype.itemsize

    def _widen(self, width: tuple[int, ...]) -> None:
        if width == self.width:
            return
        if self.part is not None and self.rows_on_disk:
            narrow = self._mapped()
            wider = self.part.with_suffix(".wider")
            with wider.open("wb") as file:
                for rows in narrow.split(max(1, _PIECE // (narrow[0].numel() * narrow.element_size()))):
                    file.write(data_of(_filled(rows, width, self.fill)))
            wider.replace(self.part)
        self.chunks = [_filled(chunk, width, self.fill) for chunk in self.chunks]
        self.width = width


def _filled(chunk: Tensor, width: tuple[int, ...], fill: float) -> Tensor:
    if tuple(chunk.shape[1:]) == width:
        return chunk
    wider = chunk.new_full((chunk.shape[0], *width), fill)
    wider[tuple(slice(size) for size in chunk.shape)] = chunk
    return wider


class Columns:
    """Several columns that grow together, within a limit of memory.

    Args:
        columns: what each column holds, by its name.
        memory_limit: bytes that are held in memory; what is more goes to part files.
        folder: where the part files go, in a folder of their own; None for the system's place for such files.
    """

    def __init__(self, columns: Mapping[str, Kind], memory_limit: int, folder: Path | None = None):
        self.columns = {name: Column(kind) for name, kind in columns.items()}
        self.memory_limit = memory_limit
        self.folder = folder
        self.held = 0
        self.parts: Path | None = None

    def append(self, chunks: Mapping[str, Tensor]) -> None:
        """Adds a chunk to every column, each with the same number of rows."""
        assert set(chunks) == set(self.columns) and len({len(chunk) for chunk in chunks.values()}) == 1
        for name, chunk in chunks.items():
            self.held += self.columns[name].append(chunk)
        if self.held > self.memory_limit:
            self._spill()

    def tensors(self) -> dict[str, Tensor]:
        """All rows of every column."""
        return {name: column.tensor() for name, column in self.columns.items()}

    def write(self, path: Path, metadata: Mapping[str, str], without: set[str]) -> None:
        """Writes a safetensors file of the columns, but those ``without``, whole or not at all."""
        entries = {name: column.entry() for name, column in self.columns.items() if name not in without}
        write_container(path, entries, metadata)

    def _spill(self) -> None:
        if self.parts is None:
            self.parts = Path(tempfile.mkdtemp(prefix=".moegate-trace-", dir=self.folder))
            # The parts outlive neither the columns nor the program.
            weakref.finalize(self, shutil.rmtree, self.parts, ignore_errors=True)
        for name, column in self.columns.items():
            column.spill(self.parts / name)
        self.held = 0
