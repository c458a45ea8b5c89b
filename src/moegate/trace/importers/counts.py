"""Counts in JSON and JSON Lines: MindSpeed-RL's, dumps of EPLB, SGLang's, and anybody's.

- ``{layer: {expert: count}}`` (MindSpeed-RL), the experts as ``3`` or ``expert_3``, or ``{layer: [count, ...]}``.
- An object with ``logical_count`` ``[layers, experts]`` or ``[steps, layers, experts]`` (SGLang), or the same under a
  name of vLLM's EPLB. No release of vLLM writes such a file yet and the names in its pull requests differ; taken are
  ``expert_load``, ``logical_load``, ``expert_load_window``, ``expert_load_pass``, ``global_expert_load``, ``load``,
  ``num_tokens_per_expert``, ``tokens_per_expert``, ``expert_counts`` and ``counts``. With a ``physical_to_logical_map``
  beside it the counts are those of physical experts.
- JSON Lines of such objects, which are added up; with ``layer``, ``layer_id`` or ``layer_idx`` a line is one layer.
- What ``save_loads`` writes.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moegate.trace.importers.building import PLAUSIBLE_EXPERTS, loads_of
from moegate.trace.importers.hints import Hints
from moegate.trace.importers.json_files import json_values
from moegate.trace.loads import Loads

__all__ = ["read_counts", "recognises_counts"]

COUNTS = (
    *("logical_count", "expert_load", "logical_load", "expert_load_window", "expert_load_pass", "global_expert_load"),
    *("load", "num_tokens_per_expert", "tokens_per_expert", "expert_counts", "counts"),
)
LAYER = ("layer", "layer_id", "layer_idx")
TABLE = "physical_to_logical_map"
OWN = {"layers", "num_experts", "load", "metadata"}
_EXPERT = re.compile(r"(?:expert[ _.-]?)?([0-9]{1,9})")


def recognises_counts(_: Path, head: bytes) -> bool:
    """Whether a file may be JSON with an object."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def read_counts(path: Path, hints: Hints) -> Loads:
    """Loads of any of these forms."""
    total: dict[str, dict[int, float]] = {}
    complete = False
    values = list(json_values(path))
    if len(values) == 1 and isinstance(values[0][1], dict) and set(values[0][1]) == OWN:
        return _own(values[0][1], path)
    for where, value in values:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object of counts, got {type(value).__name__}.")
        for layer, counts in _layers(value, where):
            complete |= isinstance(counts, np.ndarray)
            entries = counts.tolist() if isinstance(counts, np.ndarray) else counts
            row = total.setdefault(layer, {})
            for expert, count in enumerate(entries) if isinstance(entries, list) else entries.items():
                row[expert] = row.get(expert, 0.0) + count
    if complete and hints.num_experts is None and total:
        # A vector has an entry for every expert, so that its length says how many there are.
        hints = Hints(num_experts=max(max(row, default=0) for row in total.values()) + 1)
    return loads_of(_in_order(total), path, "counts", hints)


def _own(value: dict[str, Any], path: Path) -> Loads:
    """What ``save_loads`` has written, as it was."""
    if not all(isinstance(value[name], list) for name in ("layers", "num_experts", "load")):
        raise ValueError(f"{path} is damaged: its layers, num_experts and load are lists in a file of loads.")
    array = _numbers(value["load"], f"{path}, load")
    width = max((size for size in value["num_experts"] if type(size) is int), default=0)
    load_LE = torch.from_numpy(array.reshape(len(array), -1) if array.size else np.zeros((len(array), width)))
    whole = all(type(count) is int for row in value["load"] if isinstance(row, list) for count in row)
    try:
        return Loads(
            load_LE.to(torch.int64) if whole else load_LE,
            layers=tuple(value["layers"]),
            num_experts=tuple(value["num_experts"]),
            metadata=value["metadata"],
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _layers(value: dict[str, Any], where: str) -> Iterator[tuple[str, NDArray[Any] | Mapping[int, float]]]:
    name = next((name for name in COUNTS if isinstance(value.get(name), list)), None)
    if name is None:
        for layer, counts in value.items():
            yield str(layer), _of_layer(counts, f"{where}, layer {layer!r:.40}")
        return
    array = _numbers(value[name], f"{where}, {name}")
    single = next((str(value[key]) for key in LAYER if isinstance(value.get(key), int | str)), None)
    rows_LE = array[None] if array.ndim == 1 else array.sum(axis=0) if array.ndim == 3 else array
    if rows_LE.ndim != 2 or (array.ndim == 1) != (single is not None):
        raise ValueError(
            f"{where}: {name} has {array.ndim} dimensions; expected [layers, experts], [steps, layers, experts], or "
            f"[experts] with a field {LAYER[0]!r}."
        )
    if isinstance(value.get(TABLE), list):
        rows_LE = _logical(rows_LE, _numbers(value[TABLE], f"{where}, {TABLE}"), where)
    names = value.get("layers")
    if not isinstance(names, list) or len(names) != len(rows_LE) or len({str(name) for name in names}) != len(names):
        names = [f"layer {number}" for number in range(len(rows_LE))] if single is None else [single]
    yield from zip(map(str, names), rows_LE, strict=True)


def _of_layer(counts: object, where: str) -> NDArray[Any] | dict[int, float]:
    if isinstance(counts, list):
        vector = _numbers(counts, where)
        if vector.ndim == 1:
            return vector
    if isinstance(counts, dict):
        found = [_EXPERT.fullmatch(expert) for expert in counts]
        experts = [int(match[1]) for match in found if match]
        values = _numbers(list(counts.values()), where) if len(experts) == len(counts) else np.zeros((0, 0))
        if values.ndim == 1 and len(set(experts)) == len(counts):
            return dict(zip(experts, values.tolist(), strict=True))
    raise ValueError(f"{where}: expected counts by expert, {{expert: count}} or a list, in numbers.")


def _numbers(value: list[Any], where: str) -> NDArray[Any]:
    try:
        array = np.array(value)
        if array.dtype.kind in "iuf" or not array.size:
            return array.astype(np.float64)
    except (ValueError, OverflowError, TypeError):
        pass
    raise ValueError(f"{where}: not all entries are numbers, or the lists are ragged.")


def _logical(rows_LP: NDArray[Any], table_LP: NDArray[Any], where: str) -> NDArray[Any]:
    table_LP = np.atleast_2d(table_LP)
    fits = table_LP.shape == rows_LP.shape and bool((table_LP == table_LP.round()).all())
    if not fits or not table_LP.size or table_LP.min() < 0 or table_LP.max() >= PLAUSIBLE_EXPERTS:
        raise ValueError(f"{where}: {TABLE} doesn't give a logical expert for each physical one.")
    rows_LE = np.zeros((len(rows_LP), int(table_LP.max()) + 1))
    np.add.at(rows_LE, (np.arange(len(rows_LP))[:, None], table_LP.astype(np.int64)), rows_LP)
    return rows_LE


def _in_order(total: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """By number, where each layer's name has one number only; otherwise as in the file."""
    numbers = {name: re.findall(r"[0-9]+", name) for name in total}
    if all(len(found) == 1 and len(found[0]) < 10 for found in numbers.values()):
        return {name: total[name] for name in sorted(total, key=lambda name: int(numbers[name][0]))}
    return total
