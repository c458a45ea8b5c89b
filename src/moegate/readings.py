"""What a router looked at: the dense ``[T, E]`` values behind a routing, computed at once or when first read."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from moegate.scoring import Score


class Readings(Protocol):
    """The dense values that losses, balancers and metrics read; ``Routing`` describes each."""

    @property
    def logits(self) -> Tensor:
        """``[T, E]`` clean logits."""

    @property
    def scores(self) -> Tensor:
        """``[T, E]`` unbiased scores."""

    @property
    def selection_scores(self) -> Tensor:
        """``[T, E]`` scores plus bias."""

    @property
    def ranking(self) -> Tensor:
        """``[T, E]``, what experts are ordered by."""

    @property
    def noisy_logits(self) -> Tensor | None:
        """``[T, E]`` after noise, or None."""

    @property
    def shares(self) -> Tensor | None:
        """``[T, E]``, what probabilities are made of where scores can not be, or None."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Readings":
        """The same readings with every tensor changed."""


@dataclass(frozen=True, eq=False)
class ComputedReadings:
    """Readings that the selection needed anyway."""

    logits: Tensor
    scores: Tensor
    selection_scores: Tensor
    ranking: Tensor
    noisy_logits: Tensor | None = None
    shares: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "ComputedReadings":
        """The same readings with every tensor changed."""
        return _each_tensor(self, change)


Value = TypeVar("Value")
_NEVER = -1
"""No tensor has been changed so often: what is read from an outdated record's copy is as wrong as from itself."""


class once(Generic[Value]):
    """A property that is computed when it is first read and kept in the object.

    ``functools.cached_property`` holds a lock up to Python 3.11, which ``torch.compile`` can't trace. A compiler
    computes the value at every reading and merges the computations itself.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __get__(self, record: Any, owner: type | None = None) -> Value:
        value = self.compute(record)
        if not torch.compiler.is_compiling():
            record.__dict__[self.compute.__name__] = value
        return value


@dataclass(frozen=True, eq=False)
class DeferredReadings:
    """Readings that a fused gate did not need: each is computed when it is first read, and then kept.

    Attributes:
        source: ``[T, E]``, the logits as they were passed, in any type.
        token_mask: ``[T]`` bool, or None.
        noisy_logits: ``[T, E]`` after noise; None when nothing was drawn.
        score: the rule's score.
        bias: ``[E]`` float32, or None.
        rank_by: the rule's ``rank_by``.
        with_gradient: whether gradients were recorded when the routing was made; they are then recorded for what is
            computed later, wherever it is read.
    """

    source: Tensor
    token_mask: Tensor | None
    noisy_logits: Tensor | None
    score: Score
    bias: Tensor | None
    rank_by: str
    with_gradient: bool

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling() and not self.source.is_inference():
            object.__setattr__(self, "_version", self.source._version)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a tensor counts its changes anew.
        state = {name: value for name, value in vars(self).items() if name != "_version"}
        return state | {"_version": _NEVER} if self._is_outdated() else state

    @property
    def logits(self) -> Tensor:
        """The clean logits, in float32 (float64 stays), those of masked tokens 0."""
        self._check_unchanged()
        return self._wide

    @once
    def _wide(self) -> Tensor:
        with torch.set_grad_enabled(self.with_gradient):
            return wide_logits(self.source, self.token_mask)

    @once
    def scores(self) -> Tensor:
        """The unbiased scores."""
        with torch.set_grad_enabled(self.with_gradient):
            return self.score.scores(self._seen)

    @once
    def shares(self) -> Tensor | None:
        """What probabilities are made of, where the scores can't be."""
        with torch.set_grad_enabled(self.with_gradient):
            shares_TE = self.score.shares(self._seen, self.scores)
            return None if shares_TE is self.scores else shares_TE

    @once
    def selection_scores(self) -> Tensor:
        """Scores plus bias, or logits plus bias if the rule ranks by these."""
        if self.rank_by == "biased_logits":
            return _plus_bias(self._seen.detach(), self.bias)
        return _plus_bias(self.score.selection_scores(self._seen.detach()), self.bias)

    @property
    def ranking(self) -> Tensor:
        """What the experts were ordered by."""
        if ranks_by_logits(self.score, self.bias, self.rank_by):
            return self._seen.detach()
        return self.selection_scores

    @property
    def _seen(self) -> Tensor:
        return self.logits if self.noisy_logits is None else self.noisy_logits

    def _is_outdated(self) -> bool:
        known = None if torch.compiler.is_compiling() else vars(self).get("_version")
        return known is not None and self.source._version != known

    def _check_unchanged(self) -> None:
        if self._is_outdated():
            raise RuntimeError(
                "The logits were changed in place after route(), so what the router saw can't be computed any more: "
                "read it before, or pass logits.clone() to route()."
            )

    def each(self, change: Callable[[Tensor], Tensor]) -> "DeferredReadings":
        """The same readings with every tensor changed; what was computed already is computed anew if it is read."""
        changed = _each_tensor(self, change)
        if not changed.source.requires_grad:
            changed = replace(changed, with_gradient=False)
        if self._is_outdated():
            object.__setattr__(changed, "_version", _NEVER)
        return changed


def wide_logits(logits_TE: Tensor, token_mask_T: Tensor | None) -> Tensor:
    """``[T, E]`` in float32 or float64. Masked rows become 0: whatever padding holds must not reach a gradient."""
    wide_TE = (logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()).contiguous()
    return wide_TE if token_mask_T is None else wide_TE.masked_fill(~token_mask_T[:, None], 0.0)


def _plus_bias(values_TE: Tensor, bias_E: Tensor | None) -> Tensor:
    return values_TE if bias_E is None else values_TE + bias_E.detach()


def ranks_by_logits(score: Score, bias: Tensor | None, rank_by: str) -> bool:
    """Whether experts are ordered by their logits, which do not saturate as scores do."""
    return bias is None and rank_by == "logits" and score.monotone


@dataclass(frozen=True, eq=False)
class FirstReadings:
    """The readings of the first ``num_experts`` classes, where those behind them are no experts."""

    readings: Readings
    num_experts: int

    @property
    def logits(self) -> Tensor:
        """``[T, E]`` clean logits."""
        return self.readings.logits[:, : self.num_experts]

    @property
    def scores(self) -> Tensor:
        """``[T, E]`` unbiased scores; those of a softmax sum to what it leaves to the experts."""
        return self.readings.scores[:, : self.num_experts]

    @property
    def selection_scores(self) -> Tensor:
        """``[T, E]`` scores plus bias."""
        return self.readings.selection_scores[:, : self.num_experts]

    @property
    def ranking(self) -> Tensor:
        """``[T, E]``, what experts are ordered by."""
        return self.readings.ranking[:, : self.num_experts]

    @property
    def noisy_logits(self) -> Tensor | None:
        """``[T, E]`` after noise, or None."""
        noisy_TE = self.readings.noisy_logits
        return None if noisy_TE is None else noisy_TE[:, : self.num_experts]

    @property
    def shares(self) -> Tensor | None:
        """``[T, E]``, what probabilities are made of where scores can not be, or None."""
        shares_TE = self.readings.shares
        return None if shares_TE is None else shares_TE[:, : self.num_experts]

    def each(self, change: Callable[[Tensor], Tensor]) -> "FirstReadings":
        """The same readings with every tensor changed."""
        return replace(self, readings=self.readings.each(change))


Record = TypeVar("Record", ComputedReadings, DeferredReadings)


def _each_tensor(record: Record, change: Callable[[Tensor], Tensor]) -> Record:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(record, **changed)
