"""A tally in a fixed number of named numbers: percentiles over layers, the hottest and the coldest experts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moegate import metrics
from moegate.hf.training.tally import Tally

__all__ = ["layer_readings", "summarize"]

_WORST_IS_MORE = ("max_violation", "dead_fraction", "empty_fraction", "bias_spread")


def summarize(tally: Tally, *, spread: Sequence[float] = (), extremes: int = 3) -> dict[str, float]:
    """The named numbers of a tally; as many for 2 layers of 4 experts as for 61 of 256.

    Of ``max_violation``, ``dead_fraction``, ``empty_fraction`` and ``bias_spread``: the median over layers, the 90th
    percentile and the largest. Of ``min_utilization``, ``effective_fraction`` (effective experts over all) and
    ``token_entropy`` (of a token's probabilities, over ``log E``): the median, the 10th percentile and the smallest.
    And the ``extremes`` hottest and coldest experts, each with its utilization, layer and number. Readings that don't
    exist (no logits, no bias, no tokens) are left out.

    Args:
        tally: the counts.
        spread: of the selection bias, a layer; empty without any.
        extremes: how many of the hottest and of the coldest experts.

    Example:
        >>> tally = Tally([2, 2])
        >>> tally.add(0, torch.tensor([[0], [0], [0], [1]]))
        >>> tally.add(1, torch.tensor([[0], [1], [0], [1]]))
        >>> summary = summarize(tally, extremes=1)
        >>> summary["max_violation/max"], summary["hottest_1/utilization"], summary["hottest_1/layer"]
        (0.5, 1.5, 0.0)
    """
    readings = layer_readings(tally)
    if spread:
        readings["bias_spread"] = list(spread)
    summary: dict[str, float] = {}
    for name, values in readings.items():
        summary |= _percentiles(name, values)
    return summary | _extremes(tally, extremes)


def layer_readings(tally: Tally) -> dict[str, list[float]]:
    """The readings of each layer that saw tokens, by name.

    Example:
        >>> tally = Tally([2])
        >>> tally.add(0, torch.tensor([[0], [0], [0], [1]]))
        >>> layer_readings(tally)["min_utilization"]
        [0.5]
    """
    readings: dict[str, list[float]] = {}
    for layer, load_E in _loads(tally):
        width = load_E.numel()
        of_layer = {
            "max_violation": metrics.max_violation(load_E),
            "min_utilization": 1.0 - metrics.min_violation(load_E),
            "effective_fraction": metrics.effective_experts(load_E) / width,
            "dead_fraction": metrics.dead_fraction(load_E),
            "empty_fraction": tally.empty_fraction(layer),
            "token_entropy": tally.entropy(layer) / math.log(width) if width > 1 else math.nan,
        }
        for name, value in of_layer.items():
            readings.setdefault(name, []).append(value)
    # An entropy of exactly 0 in all layers is that of gates whose logits were never seen.
    if not any(readings.get("token_entropy", ())):
        readings.pop("token_entropy", None)
    return readings


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    kept = torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)
    if not kept.numel():
        return {}
    more = name in _WORST_IS_MORE
    near, end = ("p90", "max") if more else ("p10", "min")
    return {
        f"{name}/p50": kept.quantile(0.5).item(),
        f"{name}/{near}": kept.quantile(0.9 if more else 0.1).item(),
        f"{name}/{end}": (kept.max() if more else kept.min()).item(),
    }


def _extremes(tally: Tally, count: int) -> dict[str, float]:
    """The hottest and the coldest experts over all layers, first the lower layer and expert among equals."""
    ranked = [
        (float(share), layer, expert)
        for layer, load_E in _loads(tally)
        for expert, share in enumerate(metrics.utilization(load_E))
    ]
    named: dict[str, float] = {}
    for name, order in (("hottest", -1.0), ("coldest", 1.0)):
        chosen = sorted(ranked, key=lambda entry: (order * entry[0], entry[1], entry[2]))[:count]
        for place, (share, layer, expert) in enumerate(chosen, start=1):
            named |= {
                f"{name}_{place}/utilization": share,
                f"{name}_{place}/layer": float(layer),
                f"{name}_{place}/expert": float(expert),
            }
    return named


def _loads(tally: Tally) -> list[tuple[int, Tensor]]:
    loads = [(layer, tally.load(layer).cpu()) for layer in range(len(tally.num_experts))]
    return [(layer, load_E) for layer, load_E in loads if int(load_E.sum())]
