"""What a trace says about each layer: spread of the load, dead experts, margins, co-activation, domains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from moegate.metrics import (
    cv,
    domain_nmi,
    effective_experts,
    gini,
    max_violation,
    normalized_entropy,
    utilization,
)
from moegate.probability import entropy, normalized
from moegate.records import EMPTY
from moegate.trace.loads import Loads
from moegate.trace.trace import Trace

__all__ = [
    "LayerStatistics",
    "coactivation",
    "domain_load",
    "domain_specialization",
    "layer_table",
    "margins",
    "totals",
    "weight_entropy",
]

_CHUNK = 16_384
"""Tokens that are looked at together, so that memory does not grow with the trace."""


@dataclass(frozen=True)
class LayerStatistics:
    """One layer in numbers. Loads are relative to a fair share: 1 is fair, 0 is dead. NaN where there is no load.

    Attributes:
        layer: its name.
        num_experts: ``E``.
        tokens: the tokens that the layer sent somewhere; None for ``Loads``, which don't know.
        assignments: the sum of the loads.
        least_load: of the expert with the least.
        median_load: of the expert in the middle.
        greatest_load: of the expert with the most.
        max_violation: MaxVio, ``greatest_load - 1``.
        cv: standard deviation of the load over its mean.
        gini: from 0, all alike.
        effective_experts: ``exp(H)`` of the load's shares.
        normalized_entropy: ``H / log E``.
        dead_experts: how many got nothing.
        hottest: the busiest experts with their loads, the busiest first.
        coldest: the idlest experts with their loads, the idlest first.
        margin: the median over the tokens of ``margins``; None without logits.
        weight_entropy: see there; None without weights.
    """

    layer: str
    num_experts: int
    tokens: int | None
    assignments: float
    least_load: float
    median_load: float
    greatest_load: float
    max_violation: float
    cv: float
    gini: float
    effective_experts: float
    normalized_entropy: float
    dead_experts: int
    hottest: tuple[tuple[int, float], ...]
    coldest: tuple[tuple[int, float], ...]
    margin: float | None
    weight_entropy: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; None for NaN."""
        return {name: _json_number(value) for name, value in asdict(self).items()}


def layer_table(source: Trace | Loads, *, listed: int = 3) -> list[LayerStatistics]:
    """The statistics of every layer, in order.

    Args:
        source: a trace, or loads, of which less can be said.
        listed: how many experts ``hottest`` and ``coldest`` list.

    Example:
        >>> trace = Trace(torch.tensor([[[0, 2]], [[2, 1]]]), layers=("mlp",), num_experts=(4,))
        >>> (row,) = layer_table(trace)
        >>> row.max_violation, row.dead_experts, row.hottest[0]
        (1.0, 1, (2, 2.0))
    """
    load_LE = source.load
    return [_statistics(source, layer, load_LE[layer], listed) for layer in range(len(source.layers))]


def totals(table: Sequence[LayerStatistics]) -> dict[str, dict[str, float | None]]:
    """Minimum, median, 90th percentile and maximum over the layers, of each number; layers without it are left out.

    Example:
        >>> loads = Loads(torch.tensor([[1, 1], [3, 1], [4, 0]]), ("a", "b", "c"), (2, 2, 2))
        >>> totals(layer_table(loads))["max_violation"]["p50"]
        0.5
    """
    skipped = {"layer", "num_experts", "hottest", "coldest"}
    names = [name for name in LayerStatistics.__dataclass_fields__ if name not in skipped]
    result: dict[str, dict[str, float | None]] = {}
    for name in names:
        found = [value for row in table if (value := getattr(row, name)) is not None and not math.isnan(value)]
        values = torch.tensor(found, dtype=torch.float64)
        cuts = {"min": 0.0, "p50": 0.5, "p90": 0.9, "max": 1.0}
        result[name] = {cut: values.quantile(at).item() if found else None for cut, at in cuts.items()}
    return result


def coactivation(trace: Trace, layer: int) -> Tensor:
    """``[E, E]`` int64, symmetric: tokens that two experts share; on the diagonal, tokens of the expert.

    Example:
        >>> trace = Trace(torch.tensor([[[0, 2]], [[2, 1]]]), layers=("mlp",), num_experts=(3,))
        >>> coactivation(trace, 0).tolist()
        [[1, 0, 1], [0, 1, 1], [1, 1, 2]]
    """
    num_experts = trace.num_experts[layer]
    # A row and a column more, for the empty slots.
    side = num_experts + 1
    upper_N = torch.zeros(side * side, dtype=torch.int64)
    for index_TK in _chunks(trace, layer):
        columns_KT = index_TK.masked_fill(index_TK == EMPTY, num_experts).T.contiguous()
        for first, second in combinations(range(trace.top_k), 2):
            upper_N += torch.bincount(columns_KT[first] * side + columns_KT[second], minlength=side * side)
    upper_EE = upper_N.reshape(side, side)[:num_experts, :num_experts]
    pairs_EE = upper_EE + upper_EE.T
    pairs_EE.diagonal().copy_(_load(trace, layer))
    return pairs_EE


def domain_load(trace: Trace, layer: int) -> Tensor:
    """``[len(domains), E]`` int64: assignments by the domain of the token.

    Raises:
        ValueError: the trace knows no domains.

    Example:
        >>> domains = {"domain_ids": torch.tensor([0, 1]), "domains": ("en", "de")}
        >>> trace = Trace(torch.tensor([[[0]], [[2]]]), layers=("mlp",), num_experts=(3,), **domains)
        >>> domain_load(trace, 0).tolist()
        [[1, 0, 0], [0, 0, 1]]
    """
    if trace.domain_ids is None or not trace.domains:
        raise ValueError("The trace knows no domains: record it with the domain of each text, as --corpus does.")
    num_experts = trace.num_experts[layer]
    index_TK = trace.indices[:, layer].long()
    domain_T1 = trace.domain_ids.long()[:, None]
    known_TK = (index_TK != EMPTY) & (domain_T1 >= 0)
    cells_N = (domain_T1 * num_experts + index_TK)[known_TK]
    size = len(trace.domains) * num_experts
    return torch.bincount(cells_N, minlength=size).reshape(len(trace.domains), num_experts)


def domain_specialization(trace: Trace) -> list[float]:
    """The normalised mutual information of domain and expert in each layer: 0 none, 1 all; NaN without a token.

    Example:
        >>> domains = {"domain_ids": torch.tensor([0, 1]), "domains": ("en", "de")}
        >>> trace = Trace(torch.tensor([[[0]], [[2]]]), layers=("mlp",), num_experts=(3,), **domains)
        >>> [round(value, 6) for value in domain_specialization(trace)]
        [1.0]
    """
    return [domain_nmi(domain_load(trace, layer)) for layer in range(trace.num_layers)]


def margins(trace: Trace, layer: int) -> Tensor:
    """``[T]`` float32: the logit of the least chosen expert less that of the best one not chosen.

    It says how near the choice was to another one: a change of the logits by half of it can make another set. It is
    negative where a bias or a limit to groups chose against the order of the logits; NaN for a token that the layer did
    not see, or whose experts are all chosen.

    Raises:
        ValueError: the trace has no logits.

    Example:
        >>> logits = torch.tensor([[[4.0, 3.0, 1.0]]])
        >>> margins(Trace(torch.tensor([[[0]]]), layers=("mlp",), num_experts=(3,), logits=logits), 0).tolist()
        [1.0]
    """
    if trace.logits is None:
        raise ValueError("The trace has no logits: record it with logits=True.")
    found = []
    for start in range(0, trace.num_tokens, _CHUNK):
        index_TK = trace.indices[start : start + _CHUNK, layer].long()
        logits_TE = trace.logits[start : start + _CHUNK, layer, : trace.num_experts[layer]].float()
        empty_TK = index_TK == EMPTY
        chosen_TK = logits_TE.gather(1, index_TK.clamp(min=0)).masked_fill(empty_TK, math.inf)
        # The last column takes the marks of the empty slots.
        mark_TE = logits_TE.new_zeros(len(index_TK), logits_TE.shape[1] + 1, dtype=torch.bool)
        mark_TE.scatter_(1, index_TK.masked_fill(empty_TK, logits_TE.shape[1]), True)
        others_T = logits_TE.masked_fill(mark_TE[:, :-1], -math.inf).amax(dim=1)
        gap_T = chosen_TK.amin(dim=1) - others_T
        found.append(gap_T.masked_fill(~gap_T.isfinite(), math.nan))
    return torch.cat(found) if found else torch.zeros(0)


def weight_entropy(trace: Trace, layer: int) -> float:
    """The mean over the tokens of the entropy of their weights, in nats; NaN without a token.

    0 where one expert has all the weight, ``log K`` where all weigh the same.

    Raises:
        ValueError: the trace has no weights.

    Example:
        >>> weights = torch.tensor([[[0.5, 0.5]]])
        >>> trace = Trace(torch.tensor([[[0, 1]]]), layers=("mlp",), num_experts=(3,), weights=weights)
        >>> round(weight_entropy(trace, 0), 4)
        0.6931
    """
    if trace.weights is None:
        raise ValueError("The trace has no weights: record it with weights=True.")
    seen_T = (trace.indices[:, layer] != EMPTY).any(dim=1)
    weights_NK = trace.weights[seen_T, layer].float().abs()
    return float(entropy(normalized(weights_NK)).double().mean()) if len(weights_NK) else math.nan


def _statistics(source: Trace | Loads, layer: int, load_E: Tensor, listed: int) -> LayerStatistics:
    num_experts = source.num_experts[layer]
    load_E = load_E[:num_experts]
    share_E = utilization(load_E)
    order_E = share_E.argsort(descending=True, stable=True).tolist()
    trace = source if isinstance(source, Trace) else None
    return LayerStatistics(
        layer=source.layers[layer],
        num_experts=num_experts,
        tokens=None if trace is None else int((trace.indices[:, layer] != EMPTY).any(dim=1).sum()),
        assignments=load_E.sum().item(),
        least_load=share_E.min().item(),
        median_load=share_E.quantile(0.5).item(),
        greatest_load=share_E.max().item(),
        max_violation=max_violation(load_E),
        cv=cv(load_E),
        gini=gini(load_E),
        effective_experts=effective_experts(load_E),
        normalized_entropy=normalized_entropy(load_E),
        dead_experts=int((load_E == 0).sum()),
        hottest=_listed(order_E[:listed], share_E),
        coldest=_listed(order_E[::-1][:listed], share_E),
        margin=None if trace is None or trace.logits is None else margins(trace, layer).nanmedian().item(),
        weight_entropy=None if trace is None or trace.weights is None else weight_entropy(trace, layer),
    )


def _listed(experts: list[int], share_E: Tensor) -> tuple[tuple[int, float], ...]:
    return tuple((expert, share_E[expert].item()) for expert in experts)


def _chunks(trace: Trace, layer: int) -> Iterator[Tensor]:
    for start in range(0, trace.num_tokens, _CHUNK):
        yield trace.indices[start : start + _CHUNK, layer].long()


def _load(trace: Trace, layer: int) -> Tensor:
    num_experts = trace.num_experts[layer]
    index_N = trace.indices[:, layer].reshape(-1).long() + 1
    return torch.bincount(index_N, minlength=num_experts + 1)[1:]


def _json_number(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_json_number(part) for part in value] if isinstance(value, tuple | list) else value
