import io
from typing import Any

import pytest
from rich.console import Console

from moegate.lab.sweep import markdown_table, print_table
from moegate.lab.sweep.rendering import best_row, table_note


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "router": "topk",
        "top_k": 2,
        "balance": "aux",
        "control": None,
        "seeds": 3,
        "metric": "accuracy",
        "mean": 0.9512,
        "ci95": 0.0034,
        "difference": 0.0061,
        "difference_ci95": 0.0022,
        "tokens_per_second": 12345.6,
        "tokens_per_second_ci95": 78.9,
        "inference_tokens_per_second": 99999.0,
        "experts_per_token": 1.875,
        "utilization": 0.987,
        "max_violation": 0.123,
        "drop_rate": 0.0,
        "parameters": 1000,
        "active_parameters": 400,
        "causal": True,
    }
    return {**base, **changes}


NOTHING = dict.fromkeys(("utilization", "max_violation", "drop_rate", "experts_per_token", "ci95"))


def printed(rows: list[dict[str, Any]], width: int) -> str:
    file = io.StringIO()
    print_table(Console(file=file, width=width), rows, "title")
    return file.getvalue()


def test_markdown_has_every_column() -> None:
    heading, rule, line = markdown_table([row()]).splitlines()
    assert heading.count("|") == rule.count("|") == line.count("|")
    for text in ("95.12 ± 0.34", "+0.61 ± 0.22", "12,346 ± 79", "98.7", "0.12", "1.88", "400", "1,000"):
        assert f" {text} |" in line


def test_bits_per_byte_have_three_digits() -> None:
    assert "| 2.152 ± 0.010 |" in markdown_table([row(metric="bits_per_byte", mean=2.1518, ci95=0.01)])


def test_what_a_control_does_not_have_is_a_dash() -> None:
    line = markdown_table([row(control="dense", **NOTHING)]).splitlines()[2]
    assert line.startswith("| dense control |")
    assert line.count(" – |") == 4
    assert " 95.12 |" in line


@pytest.mark.parametrize(
    ("router", "top_k", "shown"),
    [
        ("topk", 2, "2"),
        ("gumbel", 2, "2"),
        ("soft", 4, "4"),
        ("expert_choice", 4, "4"),
        ("switch", 1, "1"),
        ("gshard", 2, "2"),
        ("top_p", 8, "–"),
        ("entropy_k", 4, "–"),
        ("relu", 8, "–"),
        ("all_experts", 8, "–"),
    ],
)
def test_only_a_router_with_a_k_shows_one(router: str, top_k: int, shown: str) -> None:
    line = markdown_table([row(router=router, top_k=top_k)]).splitlines()[2]
    assert line.startswith(f"| {router} | {shown} | 1.88 |")
    assert f"| {top_k} |" in markdown_table([row(router=router, top_k=top_k, control="dense")])


@pytest.mark.parametrize("width", [80, 200])
def test_no_number_is_cut_at_the_usual_widths(width: int) -> None:
    text = printed([row(), row(router="topk", control="frozen")], width)
    assert "95.12 ± 0.34" in text
    assert "12,346 ± 79" in text
    assert "…" not in text
    assert ("1,000" in text) == (width == 200)


def test_the_reference_has_no_difference_and_a_loss_is_signed() -> None:
    lines = markdown_table([row(difference=None, difference_ci95=None), row(difference=-0.01)]).splitlines()
    assert "| 95.12 ± 0.34 | – |" in lines[2]
    assert "| -1.00 ± 0.22 |" in lines[3]


def test_looking_ahead_is_starred_and_explained() -> None:
    text = printed([row(), row(router="soft", causal=False)], 200)
    assert "soft *" in text
    assert "looks ahead" in text
    assert "looks ahead" not in printed([row()], 200)


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 0.9), ("bits_per_byte", 0.8)])
def test_the_best_row_is_the_best_of_those_that_compare(metric: str, best: float) -> None:
    rows = [row(metric=metric, mean=mean) for mean in (0.8, 0.9)]
    ahead = [row(metric=metric, mean=mean, causal=False) for mean in (0.1, 0.99)]
    found = best_row([*rows, *ahead])
    assert found is not None
    assert found["mean"] == best
    assert best_row(ahead) is None


def test_one_seed_is_said_to_be_one() -> None:
    assert "One seed" in table_note([row(seeds=1, ci95=None)])
    assert "Student's t" in table_note([row()])


def test_an_empty_table_says_so() -> None:
    assert "no finished run yet" in printed([], 80)
    with pytest.raises(ValueError, match="no finished run"):
        markdown_table([])
