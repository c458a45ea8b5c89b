"""The table of a sweep as text: in colour for a terminal, in Markdown for a page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from moegate.lab.training.routers import router_spec

Row = Mapping[str, Any]
LOOKS_AHEAD = "* looks ahead: its predictions depend on other or later tokens, so its score may not be comparable."
WIDE = 170
"""Terminals of at least this many columns show all columns of the table."""
LOWER_IS_BETTER = {"bits_per_byte": True, "accuracy": False}


class Column(NamedTuple):
    """A heading, how a row fills it, and whether a narrow terminal shows it."""

    heading: str
    text: Callable[[Row], str]
    always: bool = True


def row_name(row: Row) -> str:
    """Return the name of a row: router or control, with a star if it looks ahead.

    Example:
        >>> row_name({"router": "expert_choice", "control": None, "causal": False})
        'expert_choice *'
        >>> row_name({"router": "topk", "control": "frozen", "causal": True})
        'topk, frozen gate'
    """
    if row["control"] == "dense":
        return "dense control"
    name = str(row["router"]) + (", frozen gate" if row["control"] == "frozen" else "")
    return name if row["causal"] else f"{name} *"


def fixed_k(row: Row) -> str:
    """Return the K of a row, or a dash for a router that has none: its tokens choose how many experts they visit.

    Example:
        >>> fixed_k({"router": "switch", "top_k": 1, "control": None})
        '1'
        >>> fixed_k({"router": "top_p", "top_k": 8, "control": None})
        '–'
    """
    spec = router_spec(row["router"])
    has_k = row["control"] == "dense" or spec.uses_top_k or spec.fixed_k
    return str(row["top_k"]) if has_k else "–"


def interval(mean: float, half_width: float | None, digits: int, scale: float = 1.0) -> str:
    """Return "mean ± half width", or the mean alone when there is no interval.

    Example:
        >>> interval(0.9512, 0.0034, 2, scale=100)
        '95.12 ± 0.34'
        >>> interval(0.9512, None, 2)
        '0.95'
    """
    text = f"{mean * scale:,.{digits}f}"
    return text if half_width is None else f"{text} ± {half_width * scale:,.{digits}f}"


def columns(metric: str) -> tuple[Column, ...]:
    """Return the columns of a table whose quality is measured by `metric`."""
    accuracy = metric == "accuracy"
    heading, digits, scale = ("accuracy %", 2, 100.0) if accuracy else ("bits/byte", 3, 1.0)
    return (
        Column("router", row_name),
        Column("K", fixed_k),
        Column("experts/token", lambda row: _or_dash(row["experts_per_token"], "{:.2f}"), always=False),
        Column("balance", lambda row: str(row["balance"])),
        Column(heading, lambda row: interval(row["mean"], row["ci95"], digits, scale)),
        Column(
            "difference", lambda row: _signed(row["difference"], row["difference_ci95"], digits, scale), always=False
        ),
        Column("tokens/s", lambda row: interval(row["tokens_per_second"], row["tokens_per_second_ci95"], 0)),
        Column("inference tokens/s", lambda row: _or_dash(row["inference_tokens_per_second"], "{:,.0f}"), always=False),
        Column("used %", lambda row: _or_dash(row["utilization"], "{:.1%}").rstrip("%")),
        Column("MaxVio", lambda row: _or_dash(row["max_violation"], "{:.2f}")),
        Column("drop %", lambda row: _or_dash(row["drop_rate"], "{:.1%}").rstrip("%")),
        Column("active parameters", lambda row: f"{row['active_parameters']:,}", always=False),
        Column("parameters", lambda row: f"{row['parameters']:,}", always=False),
        Column("seeds", lambda row: str(row["seeds"]), always=False),
    )


def print_table(console: Console, rows: Sequence[Row], title: str) -> None:
    """Print the table; the best mean is bold, and a note explains stars."""
    if not rows:
        console.print(f"{title}: no finished run yet.")
        return
    shown = [column for column in columns(rows[0]["metric"]) if column.always or console.width >= WIDE]
    table = Table(title=title, title_justify="left", padding=(0, 1) if console.width >= WIDE else (0, 0))
    for number, column in enumerate(shown):
        table.add_column(column.heading, justify="left" if number == 0 else "right", no_wrap=number > 0)
    best = best_row(rows)
    for row in rows:
        table.add_row(*(column.text(row) for column in shown), style="bold" if row is best else "")
    console.print(table)
    console.print(table_note(rows), highlight=False, markup=False)


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the table in Markdown.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("There is no finished run to make a table of.")
    shown = columns(rows[0]["metric"])
    lines = [
        _markdown_line(column.heading for column in shown),
        _markdown_line("---" if number == 0 else "---:" for number, _ in enumerate(shown)),
        *(_markdown_line(column.text(row) for column in shown) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the row with the best mean among those that don't look ahead."""
    fair = [row for row in rows if row["causal"]]
    if not fair:
        return None
    sign = -1.0 if LOWER_IS_BETTER[fair[0]["metric"]] else 1.0
    return max(fair, key=lambda row: sign * float(row["mean"]))


def table_note(rows: Sequence[Row]) -> str:
    """Return what a reader of the table must know, a sentence a line."""
    several = max(row["seeds"] for row in rows) > 1
    lines = [
        "± is the half width of the 95 % interval of the mean over seeds (Student's t)."
        if several
        else "One seed: no interval, so small differences say nothing.",
        "difference: to the first routed row, seed by seed." if several else "",
        "used %: effective experts, exp(entropy of the load). MaxVio: the busiest expert's excess.",
        "" if all(row["causal"] for row in rows) else LOOKS_AHEAD,
    ]
    return "\n".join(line for line in lines if line)


def _signed(difference: float | None, half_width: float | None, digits: int, scale: float) -> str:
    if difference is None:
        return "–"
    return ("+" if difference > 0 else "") + interval(difference, half_width, digits, scale)


def _markdown_line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _or_dash(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)
