"""``Trace``: the experts of every token in every layer, with what is known about the tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moegate.records import EMPTY, count_assignments

__all__ = ["PHASES", "Trace"]

PHASES = ("forward", "prefill", "decode")
"""What a token was seen in, by its number in ``Trace.phases``: a plain forward, or a part of ``generate()``."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The experts that every token went to.

    Attributes:
        indices: ``[T, L, K]`` signed integers, the smallest type that fits. -1 marks an empty slot: a layer with
            fewer slots, a token that the layer did not see, or a padded position.
        layers: the names of the ``L`` layers, in the order of the forward.
        num_experts: ``E`` of each layer.
        weights: ``[T, L, K]`` floating point, 0 in empty slots; None where they were not recorded.
        logits: ``[T, L, E]`` floating point, ``E`` the largest; -inf beyond a layer's own experts. None where they
            were not recorded.
        token_ids: ``[T]`` integers, -1 where unknown; None where they were not recorded.
        document_ids: ``[T]`` integers, the sequence that the token belongs to, counted over the recording.
        domain_ids: ``[T]`` integers into ``domains``, -1 where unknown.
        domains: the names of the domains.
        calls: ``[T]`` integers, the number of the model's forward that saw the token, counted from 0.
        phases: ``[T]`` integers into ``PHASES``.
        metadata: JSON values: ``model``, ``model_type``, ``rules`` (one a layer), ``software``, ``source``, ...

    Example:
        >>> trace = Trace(torch.tensor([[[0, 2]], [[2, 1]]]), layers=("mlp",), num_experts=(4,))
        >>> trace.load.tolist()
        [[1, 1, 2, 0]]
    """

    indices: Tensor
    layers: tuple[str, ...]
    num_experts: tuple[int, ...]
    weights: Tensor | None = None
    logits: Tensor | None = None
    token_ids: Tensor | None = None
    document_ids: Tensor | None = None
    domain_ids: Tensor | None = None
    domains: tuple[str, ...] = ()
    calls: Tensor | None = None
    phases: Tensor | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """``T``, padded positions included."""
        return self.indices.shape[0]

    @property
    def num_layers(self) -> int:
        """``L``."""
        return self.indices.shape[1]

    @property
    def top_k(self) -> int:
        """``K``, the slots of the widest layer."""
        return self.indices.shape[2]

    @property
    def token_mask(self) -> Tensor:
        """``[T]`` bool: True for a token that some layer sent somewhere."""
        return (self.indices != EMPTY).any(dim=2).any(dim=1)

    @property
    def load(self) -> Tensor:
        """``[L, E]`` int64: assignments of each expert; 0 beyond a layer's own experts."""
        width = max(self.num_experts, default=0)
        rows = [count_assignments(self.indices[:, layer].long(), width) for layer in range(self.num_layers)]
        return torch.stack(rows) if rows else torch.zeros(0, width, dtype=torch.int64)
