"""The inside of one run as data for the page: curves, load, domains, co-activation, token views."""

from typing import Any

import numpy as np
import numpy.typing as npt

from moegate.report.detail import Detail
from moegate.report.history import merge_windows
from moegate.report.packing import pack_experts, pack_levels, pack_ratios, pack_weights
from moegate.report.reading import Array
from moegate.report.records import Evaluation, History, LoadWindow, Run, TokenView


def inside(run: Run, detail: Detail, texts: "Texts") -> dict[str, Any]:
    """All charts of one run at the given level of detail."""
    evaluation = run.evaluation
    content: dict[str, Any] = {
        "curves": curves(run.history, run.num_layers, detail.points),
        "load": load_over_training(run.history.load, detail.windows),
    }
    if evaluation is not None:
        content |= {
            "final_load": _ratio_of_load(evaluation.load_LE),
            "domains": _domains(evaluation),
            "pairs": coactivation(evaluation.coactivation_LEE, detail.pair_experts),
            "views": _views(evaluation.token_views, run, detail, texts),
        }
    return content


class Texts:
    """The texts and pictures of all token views; runs that show the same one share it."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.trimmed = False
        self._index: dict[Any, int] = {}

    def add(self, view: TokenView, length: int) -> int:
        """The number of the text that `view` shows."""
        self.trimmed |= length < len(view.tokens)
        key = (view.domain, view.tokens[:length], view.pictures[:length])
        if key not in self._index:
            self._index[key] = len(self.items)
            self.items.append(dict(zip(("domain", "tokens", "pictures"), key, strict=True)))
        return self._index[key]


def curves(history: History, layers: int, points: int) -> dict[str, Any]:
    """Loss, speed and per-layer balance over training, averaged in at most `points` bins."""
    size = max(1, -(-len(history.step) // points))
    starts = range(0, len(history.step), size)
    per_layer = {"max_violation": history.max_violation, "utilization": history.utilization}
    per_layer["drop_rate"] = history.drop_rate
    return {
        "step": [history.step[min(start + size, len(history.step)) - 1] for start in starts],
        "loss": [_mean(history.loss[start : start + size]) for start in starts],
        "tokens_per_second": [_mean(history.tokens_per_second[start : start + size]) for start in starts],
        **{name: _binned(rows, layers, size) for name, rows in per_layer.items()},
    }


def _mean(values: tuple[float | None, ...]) -> float | None:
    """None where any value is missing: a gap in the curve says that the run diverged there."""
    known = [value for value in values if value is not None]
    return float(f"{sum(known) / len(known):.5g}") if len(known) == len(values) else None


def _binned(rows: tuple[Array | None, ...], layers: int, size: int) -> dict[str, Any] | None:
    if not any(row is not None for row in rows):
        return None
    table_SL = np.stack([np.full(layers, np.nan) if row is None else row for row in rows])
    groups = [table_SL[start : start + size] for start in range(0, len(rows), size)]
    return pack_levels(np.stack([group.mean(axis=0) for group in groups], axis=1))


def load_over_training(windows: tuple[LoadWindow, ...], at_most: int) -> dict[str, Any] | None:
    """Load of each expert as a multiple of its fair share, [W, L, E]."""
    if not windows:
        return None
    merged = merge_windows(windows, at_most)
    ratio_WLE = np.stack([_fair_ratio(window.load_LE) for window in merged])
    return {
        "first_step": [window.first_step for window in merged],
        "last_step": [window.last_step for window in merged],
        "ratio": pack_ratios(ratio_WLE, np.uint8),
    }


def _fair_ratio(load: Array) -> Array:
    """Load over the mean load of the layer: 1.0 is a fair share."""
    ratio: Array = load / load.mean(axis=-1, keepdims=True).clip(min=1e-12)
    return ratio


def _ratio_of_load(load_LE: Array | None) -> dict[str, Any] | None:
    return None if load_LE is None else pack_ratios(_fair_ratio(load_LE), np.uint16)


def _domains(evaluation: Evaluation) -> dict[str, Any] | None:
    load_LNE = evaluation.domain_load_LNE
    if load_LNE is None or not evaluation.domains:
        return None
    return {
        "names": evaluation.domains,
        "values": [evaluation.per_domain[name] for name in evaluation.domains],
        "ratio": pack_ratios(_fair_ratio(load_LNE), np.uint16),
    }


def coactivation(pairs_LEE: npt.NDArray[Any] | None, at_most: int, listed: int = 0) -> dict[str, Any] | None:
    """How often two experts serve the same token, beside what their loads alone would give.

    `share` is the share of all pairs, as a multiple of an even spread over the pairs; `chance` holds the
    factors a_i of the quasi-independent model, in which a pair is expected a_i a_j times. Where not all experts
    are shown, `strongest` holds the `listed` strongest pairs of all of them: experts, multiple of chance, share.
    """
    if pairs_LEE is None or pairs_LEE.shape[1] < 2:
        return None
    pairs_LEE = np.array(pairs_LEE, dtype=np.float64)
    diagonal = np.arange(pairs_LEE.shape[1])
    pairs_LEE[:, diagonal, diagonal] = 0
    total_L = pairs_LEE.sum(axis=(1, 2))
    if not total_L.any():
        return None
    share_LEE = pairs_LEE / total_L.clip(min=1)[:, None, None] * (len(diagonal) * (len(diagonal) - 1))
    chance_LE = quasi_independence(share_LEE)
    shown = min(at_most, len(diagonal))
    kept_LS = np.sort(np.argsort(-share_LEE.sum(axis=2), axis=1, kind="stable")[:, :shown], axis=1)
    rows, columns = np.triu_indices(shown, 1)
    upper = np.stack([share[np.ix_(kept, kept)][rows, columns] for share, kept in zip(share_LEE, kept_LS, strict=True)])
    return {
        "experts": kept_LS.tolist() if shown < len(diagonal) else None,
        "strongest": strongest_pairs(pairs_LEE, share_LEE, chance_LE, listed) if shown < len(diagonal) else None,
        "shown": shown,
        "share": pack_ratios(upper, np.uint16),
        "chance": pack_levels(np.take_along_axis(chance_LE, kept_LS, axis=1)),
    }


_SELDOM = 5  # pairs seen less often say little: their multiple of chance is mostly noise


def strongest_pairs(pairs_LEE: Array, share_LEE: Array, chance_LE: Array, listed: int) -> list[list[list[float]]]:
    """The pairs of each layer that stand out most from chance, those aside that were hardly ever seen."""
    count = pairs_LEE.shape[1]
    rows, columns = np.triu_indices(count, 1)
    strongest = []
    for pairs_EE, share_EE, chance_E in zip(pairs_LEE, share_LEE, chance_LE, strict=True):
        lift = share_EE[rows, columns] / (chance_E[rows] * chance_E[columns]).clip(min=1e-12)
        lift[pairs_EE[rows, columns] < _SELDOM] = -1
        best = [pair for pair in np.argsort(-lift, kind="stable")[:listed] if lift[pair] >= 0]
        part = 2 * share_EE[rows, columns] / (count * (count - 1))
        strongest.append([[int(rows[p]), int(columns[p]), round(lift[p], 3), float(f"{part[p]:.3g}")] for p in best])
    return strongest


def quasi_independence(pairs_LEE: Array, rounds: int = 100) -> Array:
    """Factors a with a_i * sum_{j != i} a_j equal to the sum of row i, for symmetric counts of pairs.

    The usual product of the row sums over the total expects pairs of an expert with itself, and so calls
    every real pair more frequent than chance. The square root damps the fixed point, which would oscillate.
    """
    degree_LE = pairs_LEE.sum(axis=2)
    factor_LE: Array = np.sqrt(degree_LE)
    for _ in range(rounds):
        others_LE = (factor_LE.sum(axis=1, keepdims=True) - factor_LE).clip(min=1e-12)
        factor_LE = np.sqrt(factor_LE * degree_LE / others_LE)
    return factor_LE


def _views(views: tuple[TokenView, ...], run: Run, detail: Detail, texts: Texts) -> list[dict[str, Any]]:
    if not views:
        return []
    slots = min(detail.slots, max(view.experts_LTK.shape[2] for view in views))
    length = max(16, detail.assignments // (len(views) * run.num_layers * max(1, slots)))
    return [_view(view, length, slots, texts) for view in views]


def _view(view: TokenView, length: int, slots: int, texts: Texts) -> dict[str, Any]:
    """The first `length` tokens with their `slots` strongest experts, strongest first, empty slots last."""
    experts_LTK, weights_LTK = view.experts_LTK[:, :length], np.nan_to_num(view.weights_LTK[:, :length])
    strength_LTK = np.where(experts_LTK < 0, -np.inf, weights_LTK)
    order_LTK = np.argsort(-strength_LTK, axis=2, kind="stable")[:, :, :slots]
    return {
        "text": texts.add(view, length),
        "experts": pack_experts(np.take_along_axis(experts_LTK, order_LTK, axis=2)),
        "weights": pack_weights(np.take_along_axis(weights_LTK, order_LTK, axis=2)),
        "slots": int(view.experts_LTK.shape[2]),
    }
