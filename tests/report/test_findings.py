"""The sentences follow the numbers: change a number, and the sentence changes."""

from dataclasses import replace
from typing import Any

import pytest

from moegate.report.findings import findings
from moegate.report.records import Row, Sweep

ROW = Row(
    kind="image",
    router="topk",
    top_k=1,
    balance="aux",
    control=None,
    causal=True,
    seeds=3,
    metric="accuracy",
    mean=0.90,
    ci95=0.01,
    tokens_per_second=8000.0,
    tokens_per_second_ci95=100.0,
    inference_tokens_per_second=None,
    utilization=0.9,
    max_violation=0.1,
    drop_rate=0.0,
    parameters=10,
    active_parameters=5,
)


def said(*rows: Row, **settings: Any) -> str:
    sweep = Sweep("s", rows[0].kind if rows else "image", "", {}, {}, True, (), rows)
    return "\n".join(findings(replace(sweep, **settings)))


def test_the_best_is_named_and_clear_differences_are_called_clear() -> None:
    text = said(ROW, replace(ROW, top_k=8, mean=0.95, tokens_per_second=4000.0))
    assert "Highest accuracy: topk, K = 8, aux balance with 95.00 % ± 1.00 (3 seeds)." in text
    assert "better by more than both intervals" in text
    assert "× 0.50" in text
    assert "order among them is open" not in text


def test_overlapping_intervals_are_not_called_a_difference() -> None:
    text = said(ROW, replace(ROW, top_k=8, mean=0.915))
    assert "no clear difference" in text
    assert "1 other configuration is not clearly behind" in text
    assert "better by" not in text


def test_fewer_bits_are_better() -> None:
    rows = [replace(ROW, kind="text", metric="bits_per_byte", mean=mean, top_k=k) for k, mean in ((1, 2.4), (2, 2.2))]
    text = said(*rows)
    assert "Lowest bits per byte: topk, K = 2, aux balance with 2.200" in text
    assert "2.400 ± 0.010 at K = 1 to 2.200 ± 0.010 at K = 2 (better" in text
    worse = said(*[replace(row, mean=4.6 - row.mean) for row in rows])
    assert "(worse by more than both intervals)" in worse


def test_a_single_seed_claims_nothing() -> None:
    text = said(*[replace(ROW, top_k=k, mean=0.9 + k / 100, ci95=None, seeds=1) for k in (1, 2)])
    assert "may be chance" in text
    assert "more than both" not in text
    assert "One seed each" in text


@pytest.mark.parametrize(("learned", "verdict"), [(0.99, "worse by"), (0.80, "better by"), (0.905, "no clear")])
def test_controls_are_compared_with_the_best_router_of_their_k(learned: float, verdict: str) -> None:
    rows = [
        replace(ROW, mean=learned),
        replace(ROW, mean=0.3, balance="none"),
        replace(ROW, top_k=2, mean=0.5),
        replace(ROW, control="dense", balance="none"),
    ]
    assert f"A dense model of the same active size against the best router of the same K: at K = 1 {verdict}" in said(
        *rows
    )


def test_controls_are_told_for_every_k() -> None:
    sizes = (1, 2, 4)
    routers = [replace(ROW, top_k=k) for k in sizes]
    frozen = [
        replace(ROW, top_k=k, control="frozen", mean=mean) for k, mean in zip(sizes, (0.7, 0.9, 0.8), strict=True)
    ]
    text = said(*routers, *frozen)
    assert "A frozen random gate against" in text
    assert "at K = 1 and 4 worse by more than both intervals; at K = 2 no clear difference" in text
    assert "A dense model" not in text


def test_what_looks_ahead_is_never_the_best() -> None:
    ahead = replace(ROW, router="expert_choice", causal=False, mean=0.999)
    text = said(ROW, replace(ROW, top_k=2, mean=0.91), ahead)
    assert "Highest accuracy: topk" in text
    assert "Not comparable: expert_choice" in text
    assert "other images of the batch" in text
    rows = [replace(row, kind="text", metric="bits_per_byte") for row in (ROW, replace(ROW, top_k=2), ahead)]
    assert "later tokens" in said(*rows)


def test_even_loads_are_called_even_only_when_they_are() -> None:
    even = said(ROW, replace(ROW, top_k=2))
    assert "All loads are fairly even: the busiest expert never gets more than 1.10 ×" in even
    uneven = said(ROW, replace(ROW, top_k=2, balance="none", max_violation=1.5))
    assert "least even: topk, K = 2 (2.50 ×)" in uneven


def test_drops_are_told_only_where_they_are() -> None:
    assert "dropped" not in said(ROW, replace(ROW, top_k=2))
    assert "topk, K = 2, aux balance, 12.5 %" in said(ROW, replace(ROW, top_k=2, drop_rate=0.125))


def test_unfinished_and_diverged_runs_are_told() -> None:
    text = said(ROW, replace(ROW, top_k=2, mean=float("nan")), waiting=("a", "b"))
    assert "2 of 2 runs have not finished." in text
    assert "Diverged, and so left out of every comparison: topk, K = 2" in text


def test_nothing_finished_nothing_said() -> None:
    assert said() == ""


def test_routers_without_a_fixed_k_need_none() -> None:
    text = said(replace(ROW, router="top_p", top_k=None), replace(ROW, router="switch", top_k=None, mean=0.8))
    assert "Highest accuracy: top_p, aux balance with" in text
    assert "Effect of K" not in text
