"""Traces in files: a safetensors file whose metadata say what the rows are."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moegate.trace.container import (
    DTYPES,
    Entry,
    Header,
    check_sums,
    data_of,
    read_header,
    read_tensor,
    write_container,
)
from moegate.trace.trace import PHASES, TOKEN_COLUMNS, Trace, smallest_integer

__all__ = ["check_output", "is_trace", "load", "save"]

FORMAT = "moegate-trace"
VERSION = 1
_TENSORS = ("indices", "weights", "logits", *TOKEN_COLUMNS)


def save(trace: Trace, path: str | Path, weights_dtype: torch.dtype | None = None) -> Path:
    """Writes a trace into a safetensors file, whole or not at all; returns the path.

    Indices are stored in the smallest signed integers that hold the experts. A file that is there already is replaced
    only if it holds a trace.

    Args:
        trace: what to write.
        path: where to; the folder must exist.
        weights_dtype: the type for weights and logits, such as ``torch.float16``; None for their own.

    Raises:
        TypeError: ``trace`` is no trace, or ``weights_dtype`` is no floating-point type.
        ValueError: at ``path`` there is something that is no trace.
        FileNotFoundError: the folder does not exist.

    Example:
        >>> import tempfile
        >>> trace = Trace(torch.tensor([[[0, 2]], [[2, 1]]]), layers=("mlp",), num_experts=(4,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(trace, f"{folder}/run.safetensors")).indices.dtype
        torch.int8
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"trace must be a moegate.trace.Trace, got {type(trace).__name__}.")
    if weights_dtype is not None and not (isinstance(weights_dtype, torch.dtype) and weights_dtype.is_floating_point):
        raise TypeError(f"weights_dtype must be a floating-point torch.dtype or None, got {weights_dtype!r}.")
    output = check_output(path)
    entries = {}
    for name in _TENSORS:
        values: Tensor | None = getattr(trace, name)
        if values is not None:
            values = _as_stored(name, values, trace, weights_dtype)
            entries[name] = Entry(values.dtype, tuple(values.shape), [data_of(values)])
    write_container(output, entries, described(trace.layers, trace.num_experts, trace.domains, dict(trace.metadata)))
    return output


def _as_stored(name: str, values: Tensor, trace: Trace, weights_dtype: torch.dtype | None) -> Tensor:
    if name == "indices":
        return values.to(smallest_integer(max(trace.num_experts, default=1) - 1))
    if name in {"weights", "logits"}:
        dtype = weights_dtype or values.dtype
        return values.to(dtype if dtype in DTYPES.values() else torch.float32)
    return values


def described(
    layers: tuple[str, ...], num_experts: tuple[int, ...], domains: tuple[str, ...], metadata: dict[str, Any]
) -> dict[str, str]:
    """The metadata of a trace's file: strings, as safetensors has it, of which one is JSON."""
    description = {
        "version": VERSION,
        "layers": layers,
        "num_experts": num_experts,
        "phases": PHASES,
        "domains": domains,
        "metadata": metadata,
    }
    return {"format": FORMAT, "trace": json.dumps(description)}


def check_output(path: str | Path) -> Path:
    """``path``, if a trace may be written there: its folder exists, and what is there already is a trace."""
    output = Path(path)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {output.parent} to write {output.name} into: make it first.")
    if output.exists() and not is_trace(output):
        raise ValueError(f"{output} is there already and is no trace: it is not overwritten. Choose another name.")
    return output


def is_trace(path: str | Path) -> bool:
    """Whether a file is a whole trace of moegate's own format."""
    try:
        return read_header(Path(path)).metadata.get("format") == FORMAT
    except (ValueError, OSError):
        return False


def load(path: str | Path) -> Trace:
    """Reads a trace from a file that ``save`` or ``moegate.hf.record`` wrote.

    The tensors are mapped, so that a trace larger than memory can be looked at. They are read once, to see by their
    checksums that they are what was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut, corrupt, no trace, or says things that don't fit together; the sentence says which.

    Example:
        >>> import tempfile
        >>> trace = Trace(torch.tensor([[[0], [1]]]), layers=("a", "b"), num_experts=(2, 2), domains=("code",))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(trace, f"{folder}/run.safetensors")).layers
        ('a', 'b')
    """
    source = Path(path)
    header = read_header(source)
    fields = _fields(source, header)
    unknown = sorted(set(header.places) - set(_TENSORS))
    if unknown or "indices" not in header.places:
        what = f"has the unknown tensor {unknown[0]!r:.80}" if unknown else "has no indices"
        raise ValueError(f"{source} is no trace: it {what}.")
    fields |= {name: read_tensor(source, place) for name, place in header.places.items()}
    try:
        trace = Trace(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source} is a damaged trace: {_lowered(str(error))}") from None
    # Last, because what is impossible can be said in more telling words.
    check_sums(source, header)
    return trace


def _fields(source: Path, header: Header) -> dict[str, Any]:
    """The fields of the trace that are no tensors."""
    if header.metadata.get("format") != FORMAT:
        raise ValueError(f"{source} is a safetensors file but no trace: its metadata have no format {FORMAT!r}.")
    try:
        described = json.loads(header.metadata["trace"])
    except KeyError:
        raise ValueError(f"{source} is a damaged trace: its metadata have no description.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is a damaged trace: its description is no valid JSON ({error!s:.200}).") from None
    if not isinstance(described, dict) or type(described.get("version")) is not int:
        raise ValueError(f"{source} is a damaged trace: its description has no version.")
    if described["version"] != VERSION:
        raise ValueError(
            f"{source} is a trace of version {described['version']}, and this moegate reads version {VERSION}: "
            "read it with the moegate that wrote it, or a later one."
        )
    if described.get("phases") != list(PHASES):
        raise ValueError(f"{source} is a damaged trace: its phases are {described.get('phases')!r:.200}.")
    wanted = {"layers": list, "num_experts": list, "domains": list, "metadata": dict}
    for name, kind in wanted.items():
        if not isinstance(described.get(name), kind):
            raise ValueError(f"{source} is a damaged trace: its description has no {kind.__name__} {name!r}.")
    return {name: described[name] for name in wanted}


def _lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:] if re.match(r"[A-Z][a-z]", sentence) else sentence
