"""The safetensors container, byte by byte: 8 bytes of length, a JSON header, the tensors' data.

Written here, and not by the safetensors package, because a trace may be larger than memory: its tensors arrive in
pieces. Read here, because a file from a stranger is refused with a sentence that says what is wrong.
"""

import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from moegate.trace.json_objects import without_twins

__all__ = ["Entry", "Header", "check_sums", "data_of", "read_header", "read_tensor", "write_container"]

DTYPES = {
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # as in the safetensors package
_MOST_AXES = 8
_SUMS = "crc32"
_PIECE = 1 << 23  # bytes that are summed at a time


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor to be written: its data comes in pieces, in order."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[memoryview]

    @property
    def num_bytes(self) -> int:
        """The size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself: where each tensor lies, and strings by name."""

    places: dict[str, Place]
    metadata: dict[str, str]


def data_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where it lies so in memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def write_container(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Writes the file whole: to a temporary neighbour first, which reaches the disk and then takes the name."""
    # Wide numbers first, so that each tensor starts at a multiple of its own size.
    ordered = sorted(entries.items(), key=lambda item: -item[1].dtype.itemsize)
    sums = dict.fromkeys(entries, 0)
    text, num_bytes = _header(ordered, metadata, sums)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, entry in ordered:
                for piece in entry.pieces:
                    sums[name] = zlib.crc32(piece, sums[name])
                    file.write(piece)
            assert file.tell() == 8 + len(text) + num_bytes
            # The sums are known now, and their place was kept.
            file.seek(8)
            file.write(_header(ordered, metadata, sums)[0])
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _header(
    ordered: list[tuple[str, Entry]], metadata: Mapping[str, str], sums: Mapping[str, int]
) -> tuple[bytes, int]:
    """The header, as long for any sums, and the bytes of the data."""
    written = {name: f"{value:08x}" for name, value in sums.items()}
    head: dict[str, Any] = {"__metadata__": dict(metadata) | {_SUMS: json.dumps(written)}}
    begin = 0
    for name, entry in ordered:
        end = begin + entry.num_bytes
        head[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(head).encode()
    return text + b" " * (-len(text) % 8), begin


def check_sums(path: Path, header: Header) -> None:
    """Raises a ``ValueError`` unless the data are those that were written, by their CRC-32, where the file has them."""
    if _SUMS not in header.metadata:
        return
    try:
        sums = json.loads(header.metadata[_SUMS], object_pairs_hook=without_twins)
    except (ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict) or set(sums) != set(header.places):
        raise ValueError(f"{path} is damaged: its checksums are not one for each of its tensors.")
    for name, place in header.places.items():
        if sums[name] != f"{_sum_of(path, place):08x}":
            raise ValueError(f"{path} is damaged: the data of {name!r:.80} are not those that were written.")


def _sum_of(path: Path, place: Place) -> int:
    with path.open("rb") as file:
        file.seek(place.begin)
        left, found = place.end - place.begin, 0
        while left and (piece := file.read(min(_PIECE, left))):
            found = zlib.crc32(piece, found)
            left -= len(piece)
    return found


def read_header(path: Path) -> Header:
    """The header of a file, checked against the file's size; a ``ValueError`` says what is wrong with the file."""

    def refuse(why: str) -> NoReturn:
        raise ValueError(f"{path} is no safetensors file that can be read: {why}.")

    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.is_file():
        refuse("it is a directory" if path.is_dir() else "it is no regular file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8:
            refuse(f"it ends after {len(start)} bytes, within the length of its header")
        if length > min(_LONGEST_HEADER, size - 8):
            refuse(f"its first 8 bytes announce a header of {length} bytes, and the file has {size - 8} more")
        text = file.read(length)
    try:
        head = json.loads(text.decode(), object_pairs_hook=without_twins)
    except (ValueError, RecursionError) as error:
        refuse(f"its header is no valid JSON ({str(error)[:200]})")
    if not isinstance(head, dict):
        refuse("its header is no JSON object")
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse("its metadata are no strings")
    places = {name: _place(name, value, 8 + length, refuse) for name, value in head.items()}
    _check_cover(places, 8 + length, size, refuse)
    return Header(places, metadata)


def _place(name: str, value: Any, start: int, refuse: Callable[[str], NoReturn]) -> Place:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        refuse(f"tensor {name!r:.80} is not described by dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        refuse(f"tensor {name!r:.80} has the dtype {value['dtype']!r:.80}, which no trace has")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _naturals(shape) or len(shape) > _MOST_AXES:
        refuse(f"tensor {name!r:.80} has the shape {shape!r:.80}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(f"tensor {name!r:.80} has the data_offsets {offsets!r:.80}")
    declared = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != declared:
        refuse(f"tensor {name!r:.80} has {offsets[1] - offsets[0]} bytes, and its shape and dtype need {declared}")
    return Place(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_cover(places: dict[str, Place], start: int, size: int, refuse: Callable[[str], NoReturn]) -> None:
    """The tensors lie one after another, from the header to the end of the file."""
    end = start
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != end:
            refuse(f"tensor {name!r:.80} overlaps another or leaves a gap before it")
        end = place.end
    if end > size:
        refuse(f"it is cut: its header announces {end} bytes, and there are {size}")
    if end < size:
        refuse(f"{size - end} bytes follow its last tensor")


def read_tensor(path: Path, place: Place) -> Tensor:
    """A tensor of the file, mapped into memory: read when touched, and writing to it never reaches the file."""
    if place.begin == place.end:
        return torch.zeros(place.shape, dtype=place.dtype)
    size = place.end - place.begin
    bytes_N = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", offset=place.begin, shape=(size,)))
    if bytes_N.data_ptr() % place.dtype.itemsize:
        bytes_N = bytes_N.clone()
    return bytes_N.view(place.dtype).view(place.shape)
