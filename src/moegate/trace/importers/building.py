"""From arrays and counts of other systems to a ``Trace`` and ``Loads``, with the checks that all formats share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moegate.records import EMPTY
from moegate.trace.importers.hints import Hints
from moegate.trace.loads import Loads
from moegate.trace.trace import Trace

__all__ = ["ASSUMED", "Document", "loads_of", "trace_of"]

PLAUSIBLE_EXPERTS = 65_536
"""More experts than any served model has: a larger index means that the numbers were read as another type."""

ASSUMED = "The number of experts is assumed: the largest index + 1. Experts above it, if any, got nothing."
"""The note of a file that doesn't say how many experts there are, when its user doesn't either."""

_SIGNED = (torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True, eq=False)
class Document:
    """One sequence: ``indices`` ``[T, L, K]`` integers, ``token_ids`` ``[T]`` or None, and ``where`` it was found."""

    indices: NDArray[Any]
    where: str
    token_ids: NDArray[Any] | None = None


def trace_of(
    documents: Sequence[Document], path: Path, format_name: str, hints: Hints, *, layers: Sequence[str] | None = None
) -> Trace:
    """The trace of several sequences, one after the other."""
    if not documents:
        raise ValueError(f"{path} holds no routed experts.")
    first = documents[0]
    for document in documents:
        _check_array(document, first, path)
    indices_TLK = np.concatenate([_signed(document, hints) for document in documents])
    lowest, highest = (int(indices_TLK.min()), int(indices_TLK.max())) if indices_TLK.size else (EMPTY, EMPTY)
    if lowest < EMPTY:
        raise ValueError(f"{path} has the expert index {lowest}; indices go from 0, and -1 marks an empty slot.")
    num_experts, notes = _num_experts(highest, path, hints)
    dtype = next(kind for kind in _SIGNED if num_experts - 1 <= torch.iinfo(kind).max)
    num_layers = indices_TLK.shape[1]
    return Trace(
        torch.from_numpy(indices_TLK).to(dtype),
        layers=tuple(layers) if layers is not None else tuple(f"layer {layer}" for layer in range(num_layers)),
        num_experts=(num_experts,) * num_layers,
        token_ids=_token_ids(documents),
        document_ids=torch.from_numpy(np.repeat(np.arange(len(documents)), [len(one.indices) for one in documents])),
        metadata=_metadata(path, format_name, notes),
    )


def loads_of(
    counts: Mapping[str, Mapping[int, float]] | Mapping[str, NDArray[Any]], path: Path, format_name: str, hints: Hints
) -> Loads:
    """Loads of layers by name, each with its counts by expert or as a vector."""
    rows = {
        name: dict(enumerate(layer.tolist())) if isinstance(layer, np.ndarray) else layer
        for name, layer in counts.items()
    }
    if not rows or not any(rows.values()):
        raise ValueError(f"{path} holds no counts of experts.")
    for name, layer in rows.items():
        for expert, count in layer.items():
            if not np.isfinite(count) or count < 0 or expert < 0:
                raise ValueError(
                    f"{path}, layer {name!r}, expert {expert}: {count} is no count; expected a number from 0 "
                    "for an expert from 0."
                )
    vectors = any(isinstance(layer, np.ndarray) for layer in counts.values())
    num_experts, notes = _num_experts(max(max(layer, default=0) for layer in rows.values()), path, hints)
    load_LE = torch.zeros(len(rows), num_experts, dtype=torch.float64)
    for row_E, layer in zip(load_LE, rows.values(), strict=True):
        row_E[list(layer)] = torch.tensor(list(layer.values()), dtype=torch.float64)
    whole = bool((load_LE == load_LE.round()).all()) and bool((load_LE < 2**53).all())
    return Loads(
        load_LE.to(torch.int64) if whole else load_LE,
        layers=tuple(rows),
        num_experts=(num_experts,) * len(rows),
        # A vector has an entry for every expert, so that its length is the number of experts.
        metadata=_metadata(path, format_name, () if vectors else notes),
    )


def _check_array(document: Document, first: Document, path: Path) -> None:
    array = document.indices
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{path}, {document.where}: the routed experts are {array.dtype} of the shape {array.shape}; expected "
            "integers [tokens, layers, top_k]."
        )
    if array.shape[1:] != first.indices.shape[1:]:
        raise ValueError(
            f"{path}, {document.where}: {array.shape[1]} layers and top_k {array.shape[2]}, but {first.where} has "
            f"{first.indices.shape[1]} and {first.indices.shape[2]}: one file, one model."
        )


def _signed(document: Document, hints: Hints) -> NDArray[Any]:
    """Signed integers; the largest value of an unsigned type is an empty slot where no expert has that number."""
    array = document.indices
    if array.dtype.kind == "u":
        largest = np.iinfo(array.dtype).max
        wide = array.astype(np.int64 if array.dtype.itemsize >= 4 else np.int32)
        if hints.num_experts is not None and hints.num_experts <= largest:
            wide[array == largest] = EMPTY
        return wide
    return array


def _num_experts(highest: int, path: Path, hints: Hints) -> tuple[int, tuple[str, ...]]:
    if hints.num_experts is None:
        if highest >= PLAUSIBLE_EXPERTS:
            raise ValueError(
                f"{path} has the expert index {highest}, more than any model has experts: are the numbers of another "
                "type or shape? If not, pass num_experts."
            )
        return max(highest + 1, 1), (ASSUMED,)
    if highest >= hints.num_experts:
        raise ValueError(f"{path} has the expert index {highest}, but num_experts is {hints.num_experts}.")
    return hints.num_experts, ()


def _token_ids(documents: Sequence[Document]) -> Tensor | None:
    if all(document.token_ids is None for document in documents):
        return None
    parts = [
        np.full(len(one.indices), -1) if one.token_ids is None else one.token_ids.astype(np.int64).clip(min=-1)
        for one in documents
    ]
    return torch.from_numpy(np.concatenate(parts))


def _metadata(path: Path, format_name: str, notes: Sequence[str]) -> dict[str, Any]:
    return {"source": {"file": path.name, "format": format_name}, "notes": list(notes)}
