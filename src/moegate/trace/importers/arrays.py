"""NumPy arrays (.npy, .npz), read without pickle: the routed experts that users of vLLM and TensorRT-LLM keep in them.

``routed_experts`` is ``[tokens, MoE layers, top_k]`` of logical expert ids, uint8 or int16: in vLLM 0.2x a prompt and a
completion apart, in later engines and in TensorRT-LLM one array whose rows are all tokens of a sequence but the last,
which no forward has seen.
"""

import math
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moegate.trace.importers.building import Document, trace_of
from moegate.trace.importers.hints import Hints
from moegate.trace.trace import Trace

__all__ = ["array_from_bytes", "read_npy", "read_npz", "recognises_npy", "recognises_npz"]

NPY_MAGIC = b"\x93NUMPY"
ROUTED = "routed_experts"
PROMPT = "prompt_routed_experts"


def recognises_npy(_: Path, head: bytes) -> bool:
    """Whether a file begins like a NumPy array."""
    return head.startswith(NPY_MAGIC)


def recognises_npz(path: Path, head: bytes) -> bool:
    """Whether a file is a zip of NumPy arrays."""
    return head.startswith(b"PK") and all(name.endswith(".npy") for name in _members(path))


def read_npy(path: Path, hints: Hints) -> Trace:
    """A trace of one array ``[tokens, layers, top_k]``."""
    with path.open("rb") as stream:
        array = _array(stream, path.stat().st_size, str(path))
    return trace_of([Document(array, "the array")], path, "routed-experts", hints)


def read_npz(path: Path, hints: Hints) -> Trace:
    """A trace of named arrays: ``routed_experts``, behind ``prompt_routed_experts`` if that is there, with
    ``prompt_token_ids`` and ``token_ids`` if they are; or any arrays ``[tokens, layers, top_k]``, each a sequence."""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    where = f"{path}, {member.filename}"
                    arrays[member.filename.removesuffix(".npy")] = _array(stream, member.file_size, where)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is cut or damaged: {error}") from None
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
    try:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_columns, dtype = header(stream)
    except (ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{where} is no NumPy array, or it is damaged: {' '.join(str(error).split())[:200]}") from None
    if dtype.kind not in "iu":
        what = "Python objects, which are not read because they can run code" if dtype.hasobject else str(dtype)
        raise ValueError(f"{where} holds {what}; expected integers [tokens, layers, top_k].")
    expected = math.prod(shape) * dtype.itemsize
    content = stream.read(expected) if min(shape, default=0) >= 0 and expected <= size else b""
    if len(content) != expected or not content:
        raise ValueError(
            f"{where} is cut: it says it has the shape {shape} of {dtype}, but holds {len(content) or 'other'} bytes."
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist() or [""]
    except (zipfile.BadZipFile, OSError):
        return [""]
