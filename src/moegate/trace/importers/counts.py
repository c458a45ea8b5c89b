"""Counts in JSON and JSON Lines: MindSpeed-RL's, dumps of EPLB, SGLang's, and anybody's.

- ``{layer: {expert: count}}`` (MindSpeed-RL), or ``{layer: [count, ...]}``.
- An object with ``logical_count`` ``[layers, experts]`` or ``[steps, layers, experts]`` (SGLang), or the same under a
  name of vLLM's EPLB. No release of vLLM writes such a file yet and the names in its pull requests differ; taken are
  ``expert_load``, ``logical_load``, ``expert_load_window``, ``global_expert_load`` and ``load``. With a
  ``physical_to_logical_map`` beside it the counts are those of physical experts.
- JSON Lines of such objects, which are added up; with ``layer``, ``layer_id`` or ``layer_idx`` a line is one layer.
- What ``save_loads`` writes.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moegate.trace.importers.building import PLAUSIBLE_EXPERTS, loads_of
from moegate.trace.importers.hints import Hints
from moegate.trace.importers.json_files import json_values
from moegate.trace.loads import Loads

__all__ = ["read_counts", "recognises_counts"]

COUNTS = ("logical_count", "expert_load", "logical_load", "expert_load_window", "global_expert_load", "load")
LAYER = ("layer", "layer_id", "layer_idx")
TABLE = "physical_to_logical_map"


def recognises_counts(_: Path, head: bytes) -> bool:
    """Whether a file may be JSON with an object."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def read_counts(path: Path, hints: Hints) -> Loads:
    """Loads of any of these forms."""
    total: dict[str, dict[int, float]] = {}
    complete = False
    for where, value in json_values(path):
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
    if isinstance(counts, dict) and all(re.fullmatch(r"[0-9]{1,9}", expert) for expert in counts):
        values = _numbers(list(counts.values()), where)
        if values.ndim == 1:
            return dict(zip(map(int, counts), values.tolist(), strict=True))
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
