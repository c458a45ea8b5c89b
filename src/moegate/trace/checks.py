"""The checks of a ``Trace``: each field by itself and against the others, in sentences."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from moegate.trace.trace import Trace

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)


def check_trace(trace: "Trace", num_phases: int) -> None:
    """Raises ``TypeError`` or ``ValueError`` unless the fields of a trace fit each other."""
    _check_integers("indices", trace.indices, (None, None, None))
    num_tokens, num_layers, top_k = trace.indices.shape
    check_names("layers", trace.layers)
    check_names("domains", trace.domains)
    check_experts(trace.num_experts, num_layers)
    if len(trace.layers) != num_layers:
        raise ValueError(f"layers must name each of the {num_layers} layers of the indices, got {len(trace.layers)}.")
    _check_floats("weights", trace.weights, (num_tokens, num_layers, top_k))
    _check_floats("logits", trace.logits, (num_tokens, num_layers, max(trace.num_experts, default=0)))
    limits: dict[str, int | None] = {"token_ids": None, "document_ids": None, "calls": None}
    limits |= {"domain_ids": len(trace.domains), "phases": num_phases}
    for name, limit in limits.items():
        _check_column(name, getattr(trace, name), num_tokens, limit)
    _check_range(trace)
    check_metadata(trace.metadata)


def _check_integers(name: str, values: object, shape: tuple[int | None, ...]) -> None:
    if not isinstance(values, Tensor) or values.dtype not in _SIGNED:
        raise TypeError(f"{name} must be a tensor of signed integers, got {_describe(values)}.")
    fits = values.ndim == len(shape) and all(
        size in {None, found} for size, found in zip(shape, values.shape, strict=True)
    )
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have the shape ({expected}), got {tuple(values.shape)}.")


def _check_floats(name: str, values: object, shape: tuple[int, ...]) -> None:
    if values is None:
        return
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor or None, got {_describe(values)}.")
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} must have the shape {shape}, as the indices say, got {tuple(values.shape)}.")


def _check_column(name: str, values: Tensor | None, num_tokens: int, limit: int | None) -> None:
    if values is None:
        return
    _check_integers(name, values, (num_tokens,))
    if num_tokens == 0:
        return
    lowest, highest = (int(value) for value in torch.aminmax(values))
    floor = 0 if name in {"calls", "phases"} else -1
    if lowest < floor or (limit is not None and highest >= limit):
        ceiling = "" if limit is None else f" to {limit - 1}"
        raise ValueError(f"{name} must be from {floor}{ceiling or ' up'}, got {lowest} to {highest}.")


def _check_range(trace: "Trace") -> None:
    if trace.indices.numel() == 0:
        return
    lowest_L, highest_L = trace.indices.amin(dim=(0, 2)).tolist(), trace.indices.amax(dim=(0, 2)).tolist()
    for name, num_experts, lowest, highest in zip(trace.layers, trace.num_experts, lowest_L, highest_L, strict=True):
        if lowest < -1 or highest >= num_experts:
            raise ValueError(
                f"indices of layer {name!r} must be experts from 0 to {num_experts - 1}, or -1 for an empty slot; "
                f"got {lowest} to {highest}."
            )


def check_names(name: str, names: object) -> None:
    """Raises unless ``names`` is a tuple of strings that differ."""
    if not isinstance(names, tuple) or not all(isinstance(part, str) for part in names):
        raise TypeError(f"{name} must be a tuple of strings, got {names!r:.200}.")
    if len(set(names)) != len(names):
        twice = next(part for part in names if names.count(part) > 1)
        raise ValueError(f"{name} must differ from each other, but {twice!r} is there twice.")


def check_experts(num_experts: object, num_layers: int) -> None:
    """Raises unless there is a number of experts for each layer."""
    if not isinstance(num_experts, tuple) or not all(type(count) is int for count in num_experts):
        raise TypeError(f"num_experts must be a tuple of integers, got {num_experts!r:.200}.")
    if len(num_experts) != num_layers:
        raise ValueError(f"num_experts must have a number for each of the {num_layers} layers, got {len(num_experts)}.")
    if any(not 1 <= count < 2**31 for count in num_experts):
        raise ValueError(f"num_experts must be from 1 up, and fit into 32 bits, got {num_experts!r:.200}.")


def check_metadata(metadata: Any) -> None:
    """Raises unless ``metadata`` can be written as a JSON object."""
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping of JSON values, got {type(metadata).__name__}.")
    try:
        json.dumps(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"metadata must be a mapping of JSON values: {error}.") from None


def _describe(values: object) -> str:
    return str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
