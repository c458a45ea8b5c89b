"""``Loads``: how many assignments each expert got, where no token's experts are known."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moegate.trace.checks import check_experts, check_metadata, check_names
from moegate.trace.whole_file import write_whole

__all__ = ["Loads", "save_loads"]


@dataclass(frozen=True, eq=False)
class Loads:
    """Counts per expert and layer, as many systems write them. What needs only these reads a ``Trace`` as well.

    Attributes:
        load: ``[L, E]``, int64 counts, or float64 where the source has averages; 0 beyond a layer's own experts.
        layers: the names of the ``L`` layers.
        num_experts: ``E`` of each layer.
        metadata: JSON values: ``source``, ``notes``, ...

    Raises:
        TypeError: a field is of another kind.
        ValueError: the sizes don't fit together, two layers have one name, or a count is negative or not finite.

    Example:
        >>> loads = Loads(torch.tensor([[3, 1], [0, 4]]), layers=("0", "1"), num_experts=(2, 2))
        >>> loads.num_layers
        2
    """

    load: Tensor
    layers: tuple[str, ...]
    num_experts: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("layers", "num_experts"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        check_names("layers", self.layers)
        check_experts(self.num_experts, len(self.layers))
        check_metadata(self.metadata)
        if not isinstance(self.load, Tensor) or self.load.dtype == torch.bool or self.load.is_complex():
            found = self.load.dtype if isinstance(self.load, Tensor) else type(self.load).__name__
            raise TypeError(f"load must be a tensor of counts, got {found}.")
        sizes = (len(self.layers), max(self.num_experts, default=0))
        if tuple(self.load.shape) != sizes:
            raise ValueError(
                f"The load has the shape {tuple(self.load.shape)}, but its layers and numbers of experts say {sizes}, "
                "[L, E]."
            )
        if not torch.isfinite(self.load).all() or (self.load < 0).any():
            raise ValueError("A count is negative or not finite: loads are counts of assignments, 0 or more.")
        for row_E, size, layer in zip(self.load, self.num_experts, self.layers, strict=True):
            if row_E[size:].any():
                raise ValueError(f"{layer} has {size} experts, but the load counts assignments beyond them.")

    @property
    def num_layers(self) -> int:
        """``L``."""
        return len(self.layers)


def save_loads(loads: Loads, path: str | Path) -> Path:
    """Writes loads as JSON, whole or not at all; ``moegate.trace.read`` reads it back. Returns the path.

    Example:
        >>> import tempfile, moegate.trace
        >>> loads = Loads(torch.tensor([[3, 1]]), layers=("mlp",), num_experts=(2,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     moegate.trace.read(save_loads(loads, f"{folder}/loads.json")).load.tolist()
        [[3, 1]]
    """
    values = {
        "layers": loads.layers,
        "num_experts": loads.num_experts,
        "load": loads.load.tolist(),
        "metadata": dict(loads.metadata),
    }
    return write_whole(path, json.dumps(values).encode())
