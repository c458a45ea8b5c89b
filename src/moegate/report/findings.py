"""What the numbers show, in sentences. Every claim is computed; where intervals overlap, it says so."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np

from moegate.report.records import Evaluation, Row, Run, Sweep
from moegate.report.wording import compact, label, metric_name, metric_value

LOWER_IS_BETTER = ("bits_per_byte",)
_COUNTABLE_AS_EVEN = 0.5  # MaxVio: the busiest expert has at most half more than its fair share


def findings(sweep: Sweep) -> tuple[str, ...]:
    """The sentences at the head of the report: about a comparison, or about a single configuration."""
    rows = [row for row in sweep.rows if math.isfinite(row.mean)]
    ranked = _ranked(row for row in rows if row.causal and row.control is None)
    sentences: list[str] = []
    if len(ranked) > 1:
        sentences += _best(ranked) + _effect_of_k(ranked) + _controls(rows, ranked)
        sentences += _balance(_with_a_choice(ranked, sweep.runs))
    else:
        sentences += [f"Result of {label(row)}: {metric_name(row.metric)} {_measured(row)}." for row in ranked]
        sentences += _inside(next((run for run in sweep.runs if run.evaluation is not None), None))
    return tuple(sentences + _drops(rows) + _caveats(sweep, rows))


def _ranked(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.mean if row.metric in LOWER_IS_BETTER else -row.mean)


def _with_a_choice(rows: Sequence[Row], runs: Iterable[Run]) -> list[Row]:
    """Without the rows that use every expert for every token: their load is even by construction."""
    experts = {run.key: run.num_experts for run in runs}
    return [row for row in rows if row.top_k is None or row.top_k < experts.get(row.key, math.inf)]


def _measured(row: Row) -> str:
    seeds = f"{row.seeds} seed{'s' if row.seeds != 1 else ''}"
    return f"{metric_value(row.metric, row.mean, row.ci95)} ({seeds})"


def _overlap(one: Row, other: Row) -> bool | None:
    """Whether the two intervals overlap; None where one of them has no interval."""
    if one.ci95 is None or other.ci95 is None:
        return None
    return abs(one.mean - other.mean) <= one.ci95 + other.ci95


def _verdict(row: Row, reference: Row) -> str:
    """How `row` compares with `reference`, as far as the seeds can tell."""
    better = (row.mean < reference.mean) == (row.metric in LOWER_IS_BETTER)
    overlap = _overlap(row, reference)
    if overlap is None:
        return f"{'better' if better else 'worse'}, but without intervals (one seed) this may be chance"
    if overlap:
        return "no clear difference, as the intervals overlap"
    return f"{'better' if better else 'worse'} by more than both intervals"


def _best(ranked: Sequence[Row]) -> list[str]:
    best = ranked[0]
    open_order = sum(_overlap(best, row) is not False for row in ranked[1:])
    name = "Lowest" if best.metric in LOWER_IS_BETTER else "Highest"
    sentence = f"{name} {metric_name(best.metric)}: {label(best)} with {_measured(best)}."
    if open_order:
        others = "1 other configuration is" if open_order == 1 else f"{open_order} other configurations are"
        sentence += f" {others} not clearly behind, so the order among them is open."
    return [sentence]


def _effect_of_k(rows: Sequence[Row]) -> list[str]:
    """The router with most values of K, from its smallest to its largest."""
    sized = [row for row in rows if row.top_k is not None]
    by_series = sorted(sized, key=lambda row: (row.router, row.balance, row.top_k))
    series = [list(group) for _, group in groupby(by_series, key=lambda row: (row.router, row.balance))]
    longest = max(series, key=len, default=[])
    if len(longest) < 2:
        return []
    first, last = longest[0], longest[-1]
    sentence = (
        f"Effect of K: {first.router} goes from {metric_value(first.metric, first.mean, first.ci95)} at "
        f"K = {first.top_k} to {metric_value(last.metric, last.mean, last.ci95)} at K = {last.top_k} "
        f"({_verdict(last, first)})"
    )
    if first.tokens_per_second and last.tokens_per_second:
        ratio = last.tokens_per_second / first.tokens_per_second
        sentence += (
            f", while training speed goes from {compact(first.tokens_per_second)} to "
            f"{compact(last.tokens_per_second)} tokens/s (× {ratio:.2f})"
        )
    return [sentence + "."]


def _controls(rows: Sequence[Row], ranked: Sequence[Row]) -> list[str]:
    """Each kind of control, at each K, against the best router of that K."""
    sentences = []
    for control, noun in (("dense", "A dense model of the same active size"), ("frozen", "A frozen random gate")):
        verdicts: dict[str, list[str]] = {}
        for row in rows:
            rival = next((rival for rival in ranked if rival.top_k == row.top_k), None)
            if row.control == control and rival is not None:
                verdicts.setdefault(_verdict(row, rival), []).append(str(row.top_k))
        if verdicts:
            told = "; ".join(f"at K = {_listed(sizes)} {verdict}" for verdict, sizes in verdicts.items())
            sentences.append(f"{noun} against the best router of the same K: {told}.")
    return sentences


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _balance(rows: Sequence[Row]) -> list[str]:
    measured = [(row.max_violation, row) for row in rows if row.max_violation is not None]
    if not measured:
        return []
    (lowest, even), (highest, uneven) = min(measured, key=_first), max(measured, key=_first)
    if highest <= _COUNTABLE_AS_EVEN:
        return [f"All loads are fairly even: the busiest expert never gets more than {1 + highest:.2f} × its share."]
    return [
        f"Most even load: {label(even)} (busiest expert {1 + lowest:.2f} × its fair share); "
        f"least even: {label(uneven)} ({1 + highest:.2f} ×)."
    ]


def _first(pair: tuple[float, Row]) -> float:
    return pair[0]


def _drops(rows: Sequence[Row]) -> list[str]:
    dropped = [(row.drop_rate, row) for row in rows if row.drop_rate]
    if not dropped:
        return []
    rate, row = max(dropped, key=_first)
    return [f"Most assignments dropped for lack of capacity: {label(row)}, {100 * rate:.1f} %."]


def _inside(run: Run | None) -> list[str]:
    """What one run's router did: its balance, and the domain that an expert answers to most."""
    if run is None or run.evaluation is None:
        return []
    return _load_inside(run.evaluation) + _domains_inside(run.evaluation)


def _load_inside(evaluation: Evaluation) -> list[str]:
    load_LE = evaluation.load_LE
    if load_LE is None or not load_LE.sum():
        return []
    ratio_LE = load_LE / load_LE.mean(axis=1, keepdims=True).clip(min=1e-12)
    layer, expert = np.unravel_index(int(ratio_LE.argmax()), ratio_LE.shape)
    idle = int((load_LE == 0).sum())
    unused = "every expert of every layer was used" if not idle else f"{idle} of {load_LE.size} experts got no token"
    return [
        f"On held-out data {unused}; the busiest is expert {expert} of layer {layer} "
        f"with {ratio_LE[layer, expert]:.2f} × its fair share."
    ]


def _domains_inside(evaluation: Evaluation) -> list[str]:
    load_LNE = evaluation.domain_load_LNE
    if load_LNE is None or len(evaluation.domains) < 2 or not load_LNE.sum():
        return []
    share_LNE = load_LNE / load_LNE.sum(axis=2, keepdims=True).clip(min=1)
    layer, domain, expert = np.unravel_index(int(share_LNE.argmax()), share_LNE.shape)
    share = share_LNE[layer, domain, expert]
    return [
        f"Strongest link of a domain to an expert: expert {expert} of layer {layer} gets {share:.0%}".replace("%", " %")
        + f" of the assignments of “{evaluation.domains[domain]}”, {share * load_LNE.shape[2]:.1f} × an even spread."
    ]


def _caveats(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    sentences = []
    if unfinished := sum(not run.finished for run in sweep.runs) + len(sweep.waiting):
        total = len(sweep.runs) + len(sweep.waiting)
        sentences.append(f"{unfinished} of {total} runs {'has' if unfinished == 1 else 'have'} not finished.")
    diverged = [row for row in sweep.rows if not math.isfinite(row.mean)]
    if diverged:
        sentences.append(f"Diverged, and so left out of every comparison: {'; '.join(map(label, diverged))}.")
    leaky = sorted({row.router for row in rows if not row.causal})
    if leaky:
        seen = {
            "text": "later tokens of the same text, which a language model does not have when it writes",
            "image": "the other images of the batch, so a single image may be answered differently",
        }[sweep.kind]
        sentences.append(f"Not comparable: {', '.join(leaky)}. When these route a token they see {seen}.")
    if rows and all(row.seeds == 1 for row in rows):
        each = " each" if len(rows) > 1 else ""
        sentences.append(f"One seed{each}: there are no intervals, and small differences may be chance.")
    return sentences
