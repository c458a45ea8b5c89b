"""``diff``: how far two traces of the same tokens agree, layer by layer, where they part, and by what margin."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from moegate.probability import normalized
from moegate.records import EMPTY
from moegate.trace.alignment import Alignment, align
from moegate.trace.statistics import margins
from moegate.trace.trace import Trace

__all__ = ["Difference", "LayerDifference", "TokenDifference", "diff"]

_CHUNK = 8_192
"""Tokens that are compared together."""

_MOST_BY_ROUNDING = 0.2  # of the decisions
_CLOSE = 0.5
"""Tokens part at close calls where their median margin is below this share of the others'."""

_ABOVE_CHANCE = 0.1
"""Agreement of less than this way from chance to 1 says that the traces have nothing to do with each other."""


@dataclass(frozen=True)
class LayerDifference:
    """One layer in two traces. NaN stands where no token is compared.

    Attributes:
        layer: its name in the first trace.
        tokens: how many both traces saw in it.
        agreement: the mean of ``|A ∩ B| / k`` over them, ``k`` the larger of the two sets.
        exact: the share of them whose sets are equal.
        chance: the agreement that sets drawn at random would have, ``k / E``.
        first: how many tokens differ here first.
        margin_same: the median margin of the first trace's choice where the sets are equal (``moegate.trace.margins``);
            None without logits.
        margin_parted: the same where they differ.
        weight_moved: the mean share of a token's weight that went to other experts or between them, 0 to 1; None
            without weights in both.
    """

    layer: str
    tokens: int
    agreement: float
    exact: float
    chance: float
    first: int
    margin_same: float | None
    margin_parted: float | None
    weight_moved: float | None


@dataclass(frozen=True)
class TokenDifference:
    """A token that differs much: its rows in both traces, its id and sequence where known, the layers that differ and
    the first of them, and its agreement over all layers."""

    row: int
    other_row: int
    token_id: int | None
    document_id: int | None
    layers_differing: int
    first_layer: str
    agreement: float


@dataclass(frozen=True)
class Difference:
    """Two traces compared.

    Attributes:
        tokens: how many tokens are compared.
        agreement: the mean of ``|A ∩ B| / k`` over all decisions (a decision is a token in a layer).
        decisions_differing: the share of the decisions with other experts.
        tokens_differing: the share of the tokens that differ in at least one layer.
        seen_by_one: decisions that only one of the traces has; they are not compared.
        layers: layer by layer.
        extremes: the tokens that differ in most layers.
        notes: what was assumed.
    """

    tokens: int
    agreement: float
    decisions_differing: float
    tokens_differing: float
    seen_by_one: int
    layers: tuple[LayerDifference, ...]
    extremes: tuple[TokenDifference, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The comparison in a sentence or two."""
        if not self.tokens or math.isnan(self.agreement):
            return "There is nothing to compare: no token went anywhere in both traces."
        if self.decisions_differing == 0:
            return f"The same experts for each of the {self.tokens:,} tokens in each of the {len(self.layers)} layers."
        known = [row for row in self.layers if row.tokens]
        chance = sum(row.chance for row in known) / len(known)
        if self.agreement < chance + _ABOVE_CHANCE * (1 - chance):
            return (
                f"No more alike than chance: {self.agreement:.1%} of the experts agree, and sets drawn at random would "
                f"by {chance:.1%}. Two models, or the tokens don't belong together."
            )
        first = max(known, key=lambda row: row.first)
        return (
            f"{self.decisions_differing:.2%} of the decisions (a token in a layer) go to other experts, and "
            f"{self.tokens_differing:.1%} of the tokens differ in at least one layer; most part first in {first.layer}."
            f"{self._of_margins()}"
        )

    def _of_margins(self) -> str:
        rows = [(row.margin_parted, row.margin_same) for row in self.layers]
        known = [(p, s) for p, s in rows if p is not None and s is not None and not math.isnan(p) and not math.isnan(s)]
        if not known:
            return ""
        parted, same = (torch.tensor(values).median().item() for values in zip(*known, strict=True))
        numbers = f"median margin {parted:.3g} where they part, {same:.3g} elsewhere"
        if parted < _CLOSE * same:
            # Between two implementations of the same model, published comparisons find about a tenth.
            few = self.decisions_differing < _MOST_BY_ROUNDING
            return f" They part at close calls ({numbers}), as after {'rounding or ' if few else ''}a small change."
        return f" They part at clear choices too ({numbers}): more than rounding."

    def to_dict(self) -> dict[str, Any]:
        """JSON values; None for NaN."""
        return {"verdict": self.verdict, **_json(asdict(self))}


def diff(a: Trace, b: Trace, *, common_prefix: bool = False, extremes: int = 10) -> Difference:
    """Compares the experts of two traces, whatever the order of the slots.

    Args:
        a: a trace.
        b: another one of the same tokens: of another precision, engine, checkpoint or step.
        common_prefix: compare sequences up to the first token that differs, instead of refusing them.
        extremes: how many of the tokens that differ most are listed.

    Raises:
        ValueError: the traces are of different models or tokens.

    Example:
        >>> a = Trace(torch.tensor([[[0, 2]], [[2, 1]]]), layers=("mlp",), num_experts=(4,))
        >>> b = Trace(torch.tensor([[[2, 0]], [[2, 3]]]), layers=("mlp",), num_experts=(4,))
        >>> diff(a, b).agreement, diff(a, b).tokens_differing
        (0.75, 0.5)

    Source: the disagreement of training and inference in routing replay, arXiv 2510.11370.
    """
    if extremes < 0:
        raise ValueError(f"extremes is {extremes}, but must be 0 or more.")
    rows = align(a, b, common_prefix=common_prefix)
    cells = _compared(a, b, rows)
    decisions, tokens = int(cells.both.sum()), int(cells.both.any(dim=1).sum())
    differs_T = cells.parted.any(dim=1)
    first_T = torch.where(differs_T, cells.parted.int().argmax(dim=1), -1)
    return Difference(
        tokens=tokens,
        agreement=_mean(cells.agreement.double().sum().item(), decisions),
        decisions_differing=_mean(float(cells.parted.sum()), decisions),
        tokens_differing=_mean(float(differs_T.sum()), tokens),
        seen_by_one=cells.seen_by_one,
        layers=tuple(_layer(a, b, rows, cells, first_T, layer) for layer in range(a.num_layers)),
        extremes=_extremes(a, rows, cells, first_T, extremes),
        notes=rows.notes,
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """``[T, L]`` each: compared or not; ``|A ∩ B| / k``, 0 elsewhere; whether the sets differ; ``k``; the share of the
    weight that moved, None without weights."""

    both: Tensor
    agreement: Tensor
    parted: Tensor
    size: Tensor
    moved: Tensor | None
    seen_by_one: int


def _compared(a: Trace, b: Trace, rows: Alignment) -> _Cells:
    parts: list[tuple[Tensor, ...]] = []
    weighted = a.weights is not None and b.weights is not None
    seen_by_one = 0
    for first, second in zip(rows.first.split(_CHUNK), rows.second.split(_CHUNK), strict=True):
        index_a, index_b = a.indices[first], b.indices[second]
        dtype = torch.promote_types(index_a.dtype, index_b.dtype)
        index_a, index_b = index_a.to(dtype), index_b.to(dtype)
        size_a, size_b = (index_a != EMPTY).sum(dim=2), (index_b != EMPTY).sum(dim=2)
        both_TL = (size_a > 0) & (size_b > 0)
        seen_by_one += int(((size_a > 0) ^ (size_b > 0)).sum())
        size_TL = torch.maximum(size_a, size_b)
        shared_TL = _shared(index_a, index_b)
        agreement_TL = (shared_TL / size_TL.clamp(min=1)).clamp(max=1).masked_fill(~both_TL, 0)
        chunk = [both_TL, agreement_TL, both_TL & (shared_TL < size_TL), size_TL.to(torch.int16)]
        if weighted:
            assert a.weights is not None and b.weights is not None
            chunk.append(_moved(index_a, index_b, a.weights[first], b.weights[second]).masked_fill(~both_TL, 0))
        parts.append(tuple(chunk))
    if not parts:
        nothing = torch.zeros(0, a.num_layers)
        return _Cells(nothing.bool(), nothing, nothing.bool(), nothing, nothing if weighted else None, 0)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return _Cells(columns[0], columns[1], columns[2], columns[3], columns[4] if weighted else None, seen_by_one)


def _shared(index_a: Tensor, index_b: Tensor) -> Tensor:
    """``[T, L]``, the experts that both sets have."""
    # Slot by slot over whole layers: a comparison along the few slots of a token is several times slower.
    slots_a, slots_b = (index.permute(2, 0, 1).contiguous() for index in (index_a, index_b))
    shared_TL = torch.zeros(index_a.shape[:2], dtype=torch.int16)
    for one_TL in slots_b:
        found_TL = torch.zeros(index_a.shape[:2], dtype=torch.bool)
        for other_TL in slots_a:
            found_TL |= one_TL == other_TL
        shared_TL += found_TL & (one_TL != EMPTY)
    return shared_TL


def _moved(index_a: Tensor, index_b: Tensor, weights_a: Tensor, weights_b: Tensor) -> Tensor:
    """``[T, L]``, half the sum of the differences between the shares of the weight that the experts have."""
    shares_a, shares_b = (
        normalized(weights.float().abs().masked_fill(index == EMPTY, 0))
        for index, weights in ((index_a, weights_a), (index_b, weights_b))
    )
    kept_TL = torch.zeros(index_a.shape[:2])
    for slot in range(index_b.shape[2]):
        match_TLK = (index_a == index_b[:, :, slot : slot + 1]) & (index_a != EMPTY)
        kept_TL += torch.minimum((shares_a * match_TLK).sum(dim=2), shares_b[:, :, slot])
    return (1 - kept_TL).clamp(min=0)


def _layer(a: Trace, b: Trace, rows: Alignment, cells: _Cells, first_T: Tensor, layer: int) -> LayerDifference:
    both_T, parted_T = cells.both[:, layer], cells.parted[:, layer]
    tokens = int(both_T.sum())
    same, parted = _margins(a, b, rows, layer, both_T & ~parted_T, parted_T)
    num_experts = max(a.num_experts[layer], b.num_experts[layer])
    return LayerDifference(
        layer=a.layers[layer],
        tokens=tokens,
        agreement=_mean(cells.agreement[:, layer].double().sum().item(), tokens),
        exact=_mean(float((both_T & ~parted_T).sum()), tokens),
        chance=_mean(cells.size[both_T, layer].double().sum().item() / num_experts, tokens),
        first=int((first_T == layer).sum()),
        margin_same=same,
        margin_parted=parted,
        weight_moved=None if cells.moved is None else _mean(cells.moved[:, layer].double().sum().item(), tokens),
    )


def _margins(
    a: Trace, b: Trace, rows: Alignment, layer: int, same_T: Tensor, parted_T: Tensor
) -> tuple[float | None, float | None]:
    if a.logits is None and b.logits is None:
        return None, None
    margin_T = margins(a, layer)[rows.first] if a.logits is not None else margins(b, layer)[rows.second]
    same, parted = (margin_T[where].nanmedian().item() if where.any() else math.nan for where in (same_T, parted_T))
    return same, parted


def _extremes(a: Trace, rows: Alignment, cells: _Cells, first_T: Tensor, count: int) -> tuple[TokenDifference, ...]:
    differs_T = cells.parted.sum(dim=1)
    mean_T = cells.agreement.sum(dim=1) / cells.both.sum(dim=1).clamp(min=1)
    # Most layers first; among those the least agreement, which is below 1.
    order = (mean_T - differs_T).argsort(stable=True)[:count].tolist()
    return tuple(
        TokenDifference(
            row=int(rows.first[token]),
            other_row=int(rows.second[token]),
            token_id=_known(a.token_ids, int(rows.first[token])),
            document_id=_known(a.document_ids, int(rows.first[token])),
            layers_differing=int(differs_T[token]),
            first_layer=a.layers[int(first_T[token])],
            agreement=mean_T[token].item(),
        )
        for token in order
        if differs_T[token] > 0
    )


def _known(values: Tensor | None, row: int) -> int | None:
    return None if values is None or values[row] < 0 else int(values[row])


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
