"""Placements in the JSON of the systems that serve by them.

- ``plain``: ``{layer: {expert: [devices]}}``.
- ``eplb``: EPLB's three tables ``physical_to_logical_map``, ``logical_to_physical_map`` and ``expert_count``, with the
  number of devices and the names of the layers.
- ``sglang``: what ``--init-expert-location FILE.json`` of SGLang reads, ``physical_to_logical_map`` and nothing else.
  It counts every layer of the model, dense ones too, so that the layers here must be all of them, as in the dumps of
  its recorder.
- ``vllm-ascend``: what ``expert_map_path`` of vllm-ascend reads, a list of the devices' experts for each layer.

Only ``plain`` can say that a slot is empty: the tables of the others have an expert in each.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moegate.trace.placement import Placement
from moegate.trace.whole_file import write_whole

__all__ = ["PLACEMENT_FORMATS", "evening", "placement_values", "save_placement"]


def _plain(placement: Placement) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, devices in zip(placement.layers, placement.slots.tolist(), strict=True):
        experts: dict[str, list[int]] = {str(expert): [] for expert in range(placement.num_experts)}
        for device, slots in enumerate(devices):
            for expert in sorted(set(slots)):
                if expert >= 0:
                    experts[str(expert)].append(device)
        result[name] = experts
    return result


def _eplb(placement: Placement) -> dict[str, Any]:
    return {
        "physical_to_logical_map": placement.physical_to_logical.tolist(),
        "logical_to_physical_map": placement.logical_to_physical.tolist(),
        "expert_count": placement.replicas.tolist(),
        "num_devices": placement.num_devices,
        "layers": list(placement.layers),
    }


def _sglang(placement: Placement) -> dict[str, Any]:
    return {"physical_to_logical_map": placement.physical_to_logical.tolist()}


def _vllm_ascend(placement: Placement) -> dict[str, Any]:
    layers = [
        {
            "layer_id": layer,
            "device_count": placement.num_devices,
            "device_list": [{"device_id": device, "device_expert": slots} for device, slots in enumerate(devices)],
        }
        for layer, devices in enumerate(placement.slots.tolist())
    ]
    return {"moe_layer_count": len(placement.layers), "layer_list": layers}


PLACEMENT_FORMATS: dict[str, Callable[[Placement], dict[str, Any]]] = {
    "eplb": _eplb,
    "plain": _plain,
    "sglang": _sglang,
    "vllm-ascend": _vllm_ascend,
}
"""By name, from a placement to JSON values."""


def save_placement(placement: Placement, path: str | Path, format: str = "eplb") -> Path:
    """Writes a placement as JSON, whole or not at all, in one of ``PLACEMENT_FORMATS``; returns the path.

    Raises:
        ValueError: there is no such format, or it has no empty slots and the placement has some.

    Example:
        >>> import json, tempfile, torch
        >>> placement = Placement(torch.tensor([[0, 1, 0, 2]]), num_experts=3, num_devices=2, layers=("mlp",))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     json.loads(save_placement(placement, f"{folder}/placement.json", "plain").read_text())
        {'mlp': {'0': [0, 1], '1': [0], '2': [1]}}
    """
    return write_whole(path, json.dumps(placement_values(placement, format)).encode())


def placement_values(placement: Placement, format: str) -> dict[str, Any]:
    """The JSON values of a placement in a format; raises as ``save_placement`` does.

    Example:
        >>> import torch
        >>> placement = Placement(torch.tensor([[0, 1, 2, -1]]), num_experts=3, num_devices=2, layers=("mlp",))
        >>> placement_values(placement, "plain")
        {'mlp': {'0': [0], '1': [0], '2': [1]}}
    """
    if format not in PLACEMENT_FORMATS:
        raise ValueError(f"{format!r} is no format of placements; there are {', '.join(PLACEMENT_FORMATS)}.")
    if format != "plain" and not placement.even:
        raise ValueError(
            f"Slots of this placement are empty, and {format} has no word for that: {evening(placement)}, or the "
            "format plain."
        )
    return PLACEMENT_FORMATS[format](placement)


def evening(placement: Placement) -> str:
    """What to do for the same number of experts on each device.

    Example:
        >>> from moegate.trace import contiguous
        >>> evening(contiguous(256, 48, ["mlp"]))
        'place with 32 replicas for 6 experts on each of the 48 devices'
    """
    slots = placement.physical_to_logical.shape[1]
    num_devices = placement.num_devices
    fewer = slots - num_devices
    words = [
        f"{wanted - placement.num_experts} replicas for {wanted // num_devices}"
        for wanted in (fewer, slots)
        if wanted >= placement.num_experts
    ]
    return f"place with {' or '.join(words)} experts on each of the {num_devices} devices"
