"""The ways in which servers put an array of routed experts into JSON: nested lists, base64, NeMo-RL's envelope.

- vLLM's HTTP server: base64 of a .npy file, or nested lists.
- SGLang: base64 of the bare numbers, int32 ``(token, layer, top_k)``; the shape is not said.
- NeMo-RL: ``nrlre1:<dtype>:<tokens>x<layers>x<top_k>:<base64>``; the sizes are also taken with commas, and the type as
  NumPy or torch spell it.
"""

import base64
import binascii
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moegate.trace.importers.arrays import NPY_MAGIC, array_from_bytes
from moegate.trace.importers.hints import Hints

__all__ = ["ENVELOPE", "decoded"]

ENVELOPE = "nrlre1:"
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")


def decoded(value: object, where: str, hints: Hints, rows: int | None = None) -> NDArray[Any]:
    """``[tokens, layers, top_k]`` integers of a value in JSON; ``rows`` is the number of tokens where it is known."""
    if isinstance(value, list):
        return _from_lists(value, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}: routed experts are lists or base64 text, not {type(value).__name__}.")
    if value.startswith(ENVELOPE):
        return _from_envelope(value, where)
    content = _from_base64(value, where)
    if content.startswith(NPY_MAGIC):
        return array_from_bytes(content, where)
    return _from_bare_numbers(content, where, hints, rows)


def _from_lists(value: list[Any], where: str) -> NDArray[Any]:
    try:
        array = np.array(value)
    except (ValueError, OverflowError, TypeError):
        raise ValueError(
            f"{where}: the lists are ragged: each token has as many layers and experts as the others."
        ) from None
    if array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"{where}: not all entries are whole numbers.")
    return array if array.size else np.zeros((0, *array.shape[1:]), np.int64)


def _from_envelope(value: str, where: str) -> NDArray[Any]:
    parts = value.split(":", 3)
    sizes = re.split("[x,]", parts[2].strip("()[]").replace(" ", "")) if len(parts) == 4 else []
    if len(sizes) != 3 or not all(size.isascii() and size.isdigit() and len(size) < 16 for size in sizes):
        raise ValueError(
            f"{where}: the envelope {value[:40]!r} is not nrlre1:<dtype>:<tokens>x<layers>x<top_k>:<base64>."
        )
    shape = tuple(int(size) for size in sizes)
    return _shaped(_from_base64(parts[3], where), _integers(parts[1], where), shape, where)


def _from_bare_numbers(content: bytes, where: str, hints: Hints, rows: int | None) -> NDArray[Any]:
    dtype = _integers(hints.dtype or "int32", where)
    entries = len(content) // dtype.itemsize
    shape = _full_shape(entries, (rows, hints.num_layers, hints.top_k))
    if shape is None:
        raise ValueError(
            f"{where}: {entries} numbers ({dtype}) without a shape. Pass num_layers and top_k (--layers, --top-k), of "
            "all layers that the server counts; and dtype if the numbers are of another type."
        )
    return _shaped(content, dtype, shape, where)


def _full_shape(entries: int, sizes: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """The sizes, the one that is None found from the number of entries; layers and top_k go before a count of tokens,
    which some requests return only in part."""
    _, num_layers, top_k = sizes
    if num_layers is not None and top_k is not None:
        return (entries // (num_layers * top_k), num_layers, top_k)
    known = [size for size in sizes if size is not None]
    if len(known) < 2 or 0 in known:
        return None
    return tuple(entries // math.prod(known) if size is None else size for size in sizes)


def _shaped(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
    if len(content) != math.prod(shape) * dtype.itemsize:
        sizes = "x".join(map(str, shape))
        raise ValueError(
            f"{where}: {len(content)} bytes don't make {sizes} (tokens, layers, top_k) of {dtype}: the text is cut, or "
            "the sizes are others."
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{where}: the text is no base64, or it is cut.") from None


def _integers(name: str, where: str) -> np.dtype[Any]:
    short = name.removeprefix("torch.")
    if short in _INTEGERS:
        little_endian: np.dtype[Any] = np.dtype(short).newbyteorder("<")
        return little_endian
    if re.fullmatch("[<>|=]?[iu][1248]", short):
        return np.dtype(short)
    raise ValueError(f"{where}: the type {name[:40]!r} is none of {', '.join(_INTEGERS)}.")
