"""Dumps of SGLang's expert distribution recorder (.pt), read without running any code that a pickle may hold.

Three modes write two shapes of file: ``stat`` a ``logical_count`` ``[steps, layers, experts]``; ``per_pass`` and
``per_token`` a list ``records``, one a forward, of ``global_physical_count`` ``[layers, physical experts]`` and, per
token, ``topk_ids_of_layer`` ``[layers, tokens, top_k]``, both by physical expert, with ``last_physical_to_logical_map``
``[layers, physical experts]``. The layers are all of the model's, so that dense ones are there with nothing in them.
Names are those of the releases of 2025 and 2026; ``logical_count`` is also taken without its first dimension.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moegate.trace.importers.archives import member_names
from moegate.trace.importers.building import Document, loads_of, trace_of
from moegate.trace.importers.hints import Hints
from moegate.trace.loads import Loads
from moegate.trace.trace import Trace

__all__ = ["read_recorder", "recognises_recorder"]

FORMAT = "sglang-recorder"


def recognises_recorder(path: Path, head: bytes) -> bool:
    """Whether a file is what ``torch.save`` writes, now or in old versions."""
    if head.startswith(b"PK"):
        return path.suffix in {".pt", ".pth"} or any(name.endswith("data.pkl") for name in member_names(path))
    return head.startswith(b"\x80") and path.suffix in {".pt", ".pth"}


def read_recorder(path: Path, hints: Hints) -> Trace | Loads:
    """A trace where the dump has the experts of each token, otherwise loads."""
    dump = _loaded(path)
    if isinstance(dump.get("logical_count"), Tensor):
        return _from_counts(dump["logical_count"], path, hints)
    records = dump.get("records")
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError(
            f"{path} has neither a tensor logical_count nor a list of records, as SGLang's recorder writes."
        )
    table = dump.get("last_physical_to_logical_map")
    table_LP = _integers(table, path, "last_physical_to_logical_map", 2) if isinstance(table, Tensor) else None
    if all(isinstance(record.get("topk_ids_of_layer"), Tensor) for record in records):
        return _from_tokens(records, table_LP, path, hints)
    return _from_passes(records, table_LP, path, hints)


def _loaded(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dump = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds Python objects, which are not read because they can run code, or it is damaged: a dump of "
            "the recorder has tensors, lists and numbers only."
        ) from None
    except Exception as error:  # a damaged pickle runs into anything
        raise ValueError(f"{path} is cut or damaged: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(dump, dict):
        raise ValueError(f"{path} holds a {type(dump).__name__}; a dump of SGLang's recorder is a dictionary.")
    return dump


def _from_counts(count: Tensor, path: Path, hints: Hints) -> Loads:
    if count.ndim not in {2, 3}:
        raise ValueError(
            f"{path}: logical_count has the shape {tuple(count.shape)}; expected [steps, layers, experts]."
        )
    count_LE = count.double().sum(dim=0) if count.ndim == 3 else count.double()
    return loads_of(_by_layer(count_LE.numpy()), path, FORMAT, hints)


def _from_passes(records: list[dict[str, Any]], table_LP: Tensor | None, path: Path, hints: Hints) -> Loads:
    found = (record.get("global_physical_count") for record in records)
    counts = [count for count in found if isinstance(count, Tensor)]
    if len(counts) < len(records) or len({tuple(count.shape) for count in counts}) > 1:
        raise ValueError(
            f"{path}: the records have neither topk_ids_of_layer nor a global_physical_count of one shape."
        )
    count_LP = torch.stack(counts).double().sum(dim=0)
    if table_LP is None or table_LP.shape != count_LP.shape:
        raise ValueError(f"{path}: last_physical_to_logical_map is missing or of another shape than the counts.")
    num_experts = int(table_LP.max()) + 1
    count_LE = count_LP.new_zeros(len(count_LP), num_experts).scatter_add(1, table_LP, count_LP)
    return loads_of(_by_layer(count_LE.numpy()), path, FORMAT, hints)


def _from_tokens(records: list[dict[str, Any]], table_LP: Tensor | None, path: Path, hints: Hints) -> Trace:
    documents = []
    for number, record in enumerate(records):
        where = f"record {number}"
        ids_LTK = _integers(record["topk_ids_of_layer"], path, f"{where}, topk_ids_of_layer", 3)
        if table_LP is not None:
            ids_LTK = _logical(ids_LTK, table_LP, path, where)
        tokens = record.get("input_ids")
        fits = isinstance(tokens, Tensor | list) and len(tokens) == ids_LTK.shape[1]
        token_ids = np.asarray(tokens) if fits else None
        if token_ids is not None and (token_ids.ndim != 1 or token_ids.dtype.kind not in "iu"):
            token_ids = None
        documents.append(Document(ids_LTK.transpose(0, 1).numpy(), where, token_ids))
    return trace_of(documents, path, FORMAT, hints)


def _logical(ids_LTK: Tensor, table_LP: Tensor, path: Path, where: str) -> Tensor:
    num_layers, num_physical = table_LP.shape
    if len(ids_LTK) != num_layers or (ids_LTK.numel() and int(ids_LTK.max()) >= num_physical):
        raise ValueError(
            f"{path}, {where}: physical experts or layers beyond the {num_layers}x{num_physical} of the map to logical "
            "ones."
        )
    flat_LN = ids_LTK.flatten(1)
    return torch.where(flat_LN < 0, -1, table_LP.gather(1, flat_LN.clamp(min=0))).reshape(ids_LTK.shape)


def _integers(values: Tensor, path: Path, name: str, dims: int) -> Tensor:
    wrong = values.is_floating_point() or values.dtype == torch.bool or values.is_complex() or values.is_quantized
    if wrong or values.ndim != dims or values.layout != torch.strided:
        raise ValueError(
            f"{path}: {name} is {values.dtype} of the shape {tuple(values.shape)}; expected integers with {dims} "
            "dimensions."
        )
    return values.to(torch.int64)


def _by_layer(count_LE: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"layer {layer}": row_E for layer, row_E in enumerate(count_LE)}
