"""``Trace``: the experts of every token in every layer, with what is known about the tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moegate.records import EMPTY, count_assignments
from moegate.trace.checks import check_trace

__all__ = ["PHASES", "TOKEN_COLUMNS", "Trace", "smallest_integer"]

PHASES = ("forward", "prefill", "decode")
"""What a token was seen in, by its number in ``Trace.phases``: a plain forward, or a part of ``generate()``."""

TOKEN_COLUMNS = ("token_ids", "document_ids", "domain_ids", "calls", "phases")
"""The fields of a trace with one integer a token."""


def smallest_integer(highest: int) -> torch.dtype:
    """The smallest signed integer type that holds -1 to ``highest``."""
    return next(dtype for dtype in (torch.int8, torch.int16, torch.int32) if highest <= torch.iinfo(dtype).max)


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """The experts that every token went to.

    Attributes:
        indices: ``[T, L, K]`` signed integers, the smallest type that fits. -1 marks an empty slot: a layer with
            fewer slots, a token that the layer did not see, or a padded position.
        layers: the names of the ``L`` layers, in the order of the forward.
        num_experts: ``E`` of each layer.
        weights: ``[T, L, K]`` floating point, 0 in empty slots; None where they were not recorded.
        logits: ``[T, L, E]`` floating point, ``E`` the largest; -inf beyond a layer's own experts and where the layer
            did not see the token. None where they were not recorded.
        token_ids: ``[T]`` integers, -1 where unknown; None where they were not recorded.
        document_ids: ``[T]`` integers, the sequence that the token belongs to, counted over the recording; -1 for
            padding.
        domain_ids: ``[T]`` integers into ``domains``, -1 where unknown.
        domains: the names of the domains.
        calls: ``[T]`` integers, the number of the model's forward that saw the token, counted from 0.
        phases: ``[T]`` integers into ``PHASES``.
        metadata: JSON values: ``model``, ``model_type``, ``rules`` (one a layer), ``software``, ``source``, ...

    Raises:
        TypeError: a field is no tensor, or of another kind of number.
        ValueError: shapes don't fit together, or a number is out of its range.

    Example:
        >>> trace = Trace(torch.tensor([[[0, 2]], [[2, 1]]]), layers=("mlp",), num_experts=(4,))
        >>> trace.load.tolist()
        [[1, 1, 2, 0]]
        >>> trace
        Trace(2 tokens, 1 layer, 4 experts, top_k=2)
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

    def __post_init__(self) -> None:
        for name in ("layers", "num_experts", "domains"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        check_trace(self, len(PHASES))

    def __len__(self) -> int:
        """``T``, padded positions included."""
        return self.num_tokens

    def __repr__(self) -> str:
        experts = sorted(set(self.num_experts))
        parts = [
            f"{self.num_tokens} token{'s' * (self.num_tokens != 1)}",
            f"{self.num_layers} layer{'s' * (self.num_layers != 1)}",
            f"{' or '.join(map(str, experts)) or 0} experts",
            f"top_k={self.top_k}",
        ]
        parts += [name for name in ("weights", "logits", *TOKEN_COLUMNS) if getattr(self, name) is not None]
        return f"Trace({', '.join(parts)})"

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

    def select(
        self,
        layers: Sequence[int | str] | None = None,
        phase: str | None = None,
        domain: str | None = None,
        document: int | None = None,
        tokens: Tensor | None = None,
    ) -> "Trace":
        """A part of the trace: the tokens that meet every condition, in the layers that are named.

        Args:
            layers: names or numbers of layers (negative ones from the end), in the order wanted; None for all.
            phase: one of ``PHASES``.
            domain: one of ``domains``.
            document: a number in ``document_ids``.
            tokens: ``[T]`` bool, True for a token to keep.

        Raises:
            ValueError: there is no such layer, phase or domain, or the trace does not know that of its tokens.

        Example:
            >>> trace = Trace(torch.tensor([[[0], [1]], [[2], [3]]]), layers=("first", "last"), num_experts=(4, 4))
            >>> trace.select(layers=["last"], tokens=torch.tensor([False, True])).indices.tolist()
            [[[3]]]
        """
        keep_T = torch.ones(self.num_tokens, dtype=torch.bool, device=self.indices.device)
        if phase is not None:
            keep_T &= self._column("phases") == _number(phase, PHASES, "phase")
        if domain is not None:
            keep_T &= self._column("domain_ids") == _number(domain, self.domains, "domain")
        if document is not None:
            keep_T &= self._column("document_ids") == document
        if tokens is not None:
            keep_T &= self._mask(tokens)
        numbers = range(self.num_layers) if layers is None else [self._layer(layer) for layer in layers]
        return self._part(None if bool(keep_T.all()) else keep_T, list(numbers))

    def _part(self, keep_T: Tensor | None, layers: list[int]) -> "Trace":
        whole = layers == list(range(self.num_layers))

        def rows(values: Tensor | None) -> Tensor | None:
            return values if values is None or keep_T is None else values[keep_T]

        def both(values: Tensor | None, width: int | None = None) -> Tensor | None:
            kept = rows(values)
            return kept if kept is None or whole else kept[:, layers, :width]

        num_experts = tuple(self.num_experts[layer] for layer in layers)
        indices = both(self.indices)
        assert indices is not None
        metadata = dict(self.metadata)
        if isinstance(rules := metadata.get("rules"), list) and len(rules) == self.num_layers:
            metadata["rules"] = [rules[layer] for layer in layers]
        return Trace(
            indices,
            tuple(self.layers[layer] for layer in layers),
            num_experts,
            weights=both(self.weights),
            logits=both(self.logits, max(num_experts, default=0)),
            domains=self.domains,
            metadata=metadata,
            **{name: rows(getattr(self, name)) for name in TOKEN_COLUMNS},
        )

    def _column(self, name: str) -> Tensor:
        values: Tensor | None = getattr(self, name)
        if values is None:
            raise ValueError(f"This trace has no {name}, so its tokens can't be selected by them.")
        return values

    def _mask(self, tokens: Tensor) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.bool or tuple(tokens.shape) != (self.num_tokens,):
            found = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(
                f"tokens must be a bool tensor [{self.num_tokens}], True for a token to keep, got {found}."
            )
        return tokens

    def _layer(self, layer: int | str) -> int:
        if isinstance(layer, str):
            return _number(layer, self.layers, "layer")
        if isinstance(layer, bool) or not isinstance(layer, int) or not -self.num_layers <= layer < self.num_layers:
            raise ValueError(f"layers must be names or numbers below {self.num_layers}, got {layer!r}.")
        return layer % self.num_layers


def _number(name: str, names: Iterable[str], what: str) -> int:
    known = list(names)
    if name not in known:
        raise ValueError(f"There is no {what} {name!r} in this trace; there are {', '.join(known) or 'none'}.")
    return known.index(name)
