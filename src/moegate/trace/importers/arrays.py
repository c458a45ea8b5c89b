"""NumPy arrays (.npy, .npz), read without pickle: the routed experts that users of vLLM and TensorRT-LLM keep in them.

``routed_experts`` is ``[tokens, MoE layers, top_k]`` of logical expert ids, uint8 or int16: in vLLM 0.2x a prompt and a
completion apart, in later engines and in TensorRT-LLM one array whose rows are all tokens of a sequence but the last,
which no forward has seen.
"""

import ast
import math
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moegate.trace.importers.archives import member_names, members
from moegate.trace.importers.building import Document, trace_of
from moegate.trace.importers.hints import Hints
from moegate.trace.trace import Trace

__all__ = ["array_from_bytes", "read_npy", "read_npz", "recognises_npy", "recognises_npz"]

NPY_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}  # of the header's length, by version
_LONGEST_HEADER = 10_000  # of an array of integers it has some 100 bytes
ROUTED = "routed_experts"
PROMPT = "prompt_routed_experts"


def recognises_npy(_: Path, head: bytes) -> bool:
    """Whether a file begins like a NumPy array."""
    return head.startswith(NPY_MAGIC)


def recognises_npz(path: Path, head: bytes) -> bool:
    """Whether a file is a zip of NumPy arrays."""
    names = member_names(path) if head.startswith(b"PK") else []
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_npy(path: Path, hints: Hints) -> Trace:
    """A trace of one array ``[tokens, layers, top_k]``."""
    with path.open("rb") as stream:
        array = _array(stream, path.stat().st_size, str(path))
    return trace_of([Document(array, "the array")], path, "routed-experts", hints)


def read_npz(path: Path, hints: Hints) -> Trace:
    """A trace of named arrays: ``routed_experts``, behind ``prompt_routed_experts`` if that is there, with
    ``prompt_token_ids`` and ``token_ids`` if they are; or any arrays ``[tokens, layers, top_k]``, each a sequence."""
    arrays = {
        name.removesuffix(".npy"): array_from_bytes(content, f"{path}, {name}") for name, content in members(path)
    }
    return trace_of(_documents(arrays), path, "routed-experts", hints)


def _documents(arrays: dict[str, NDArray[Any]]) -> list[Document]:
    if ROUTED not in arrays:
        return [Document(array, name) for name, array in arrays.items() if array.ndim == 3]
    parts = [arrays[name] for name in (PROMPT, ROUTED) if name in arrays]
    if len({part.shape[1:] for part in parts}) > 1:
        return [Document(part, name) for name, part in zip((PROMPT, ROUTED), parts, strict=True)]
    indices = np.concatenate(parts)
    tokens = [arrays[name].reshape(-1) for name in ("prompt_token_ids", "token_ids") if name in arrays]
    token_ids = np.concatenate(tokens) if tokens else None
    if token_ids is not None:
        fits = token_ids.dtype.kind in "iu" and len(token_ids) - len(indices) in {0, 1}
        token_ids = token_ids[: len(indices)] if fits else None
    return [Document(indices, ROUTED, token_ids)]


def array_from_bytes(content: bytes, where: str) -> NDArray[Any]:
    """The array of a .npy file's content."""
    return _array(BytesIO(content), len(content), where)


def _array(stream: IO[bytes], size: int, where: str) -> NDArray[Any]:
    """The array of a .npy file of ``size`` bytes; its header is not believed, and objects (pickle) are refused."""
    shape, by_columns, dtype = _header(stream, where)
    if dtype.kind not in "iu":
        what = "Python objects, which are not read because they can run code" if dtype.hasobject else str(dtype)
        raise ValueError(f"{where} holds {what}; expected integers [tokens, layers, top_k].")
    expected = math.prod(shape) * dtype.itemsize
    content = stream.read(expected) if min(shape, default=0) >= 0 and expected <= size else b""
    if len(content) != expected or not content:
        raise ValueError(
            f"{where} is cut: it says it has the shape {shape} of {dtype}, but holds {len(content) or 'other'} bytes."
        )
    if stream.read(1):
        raise ValueError(f"{where} is damaged, or several files in one: bytes follow the array {shape} of {dtype}.")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether it is stored by columns, and the type, as the header has them in a Python dictionary."""
    magic = stream.read(len(NPY_MAGIC) + 2)
    width = _LENGTH_BYTES.get(magic[-2:], 0) if magic.startswith(NPY_MAGIC) else 0
    size = int.from_bytes(stream.read(width), "little")
    try:
        if not 0 < size <= _LONGEST_HEADER:
            raise ValueError("no header of a known version")
        header = ast.literal_eval(stream.read(size).decode("latin-1").strip())
        shape, by_columns, dtype = header["shape"], bool(header["fortran_order"]), np.dtype(header["descr"])
        if not isinstance(shape, tuple) or not all(type(length) is int for length in shape):
            raise ValueError(f"the shape is {shape!r:.80}")
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{where} is no NumPy array, or it is damaged: {reason}") from None
    return shape, by_columns, dtype
