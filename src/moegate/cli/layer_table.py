"""The layers of a trace as a table for a terminal of 80 columns."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from moegate.report.traces.content import Figures
from moegate.trace import LayerStatistics, totals

__all__ = ["layers_to_list", "number", "print_layers"]

FEW = 16
"""Layers that are all listed unless a number is asked for."""

WORST = 10
MOST = 10
"""Columns from which on fewer experts are listed, so that a line stays within 80 characters."""

SEVERAL = 4
"""Layers from which on the smallest, the median and the largest numbers are listed too."""

LEGEND = (
    "Load: least – greatest, × the fair share. Eff.: effective experts. Entr.: entropy of the load, 1 even. "
    "Hottest, coldest: experts by number."
)


def layers_to_list(wanted: str | None, num_layers: int) -> int | None:
    """How many layers are listed, the worst first; None for all, in the order of the model.

    Raises:
        ValueError: ``wanted`` is neither ``all`` nor a number from 1 up.

    Example:
        >>> layers_to_list(None, 58), layers_to_list(None, 12), layers_to_list("all", 58), layers_to_list("3", 58)
        (10, None, None, 3)
    """
    if wanted is None:
        return None if num_layers <= FEW else WORST
    if wanted == "all":
        return None
    if not wanted.isdecimal() or not int(wanted):
        raise ValueError(f"--layers {wanted!r} is neither 'all' nor how many layers to list, the worst first.")
    return int(wanted) if int(wanted) < num_layers else None


def print_layers(console: Console, figures: Figures, listed: int | None) -> None:
    """Prints the layers, and lines of the smallest, the median and the largest number of all of them."""
    rows = list(enumerate(figures.table))
    known = [row for row in rows if row[1].assignments]
    if listed is not None:
        rows = sorted(known, key=lambda row: -row[1].max_violation)[:listed]
    columns = _columns(figures)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        left = name in ("Layer", "Hottest", "Coldest")
        table.add_column(name, justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    for number, row in rows:
        line = _line(row, None if figures.nmi is None else figures.nmi[number], 3 if len(columns) < MOST else 2)
        table.add_row(figures.labels[number], *(line[name] for name in columns[1:]), end_section=number == rows[-1][0])
    for name, line in _summary(figures) if len(known) >= SEVERAL else ():
        table.add_row(name, *(line.get(column, "") for column in columns[1:]), style="dim")
    if listed is not None:
        console.print(f"The {len(rows)} least even of {len(figures.table)} layers; --layers all lists them all.")
    console.print(table)
    console.print(LEGEND, style="dim")


def _columns(figures: Figures) -> list[str]:
    columns = ["Layer", "Load", "MaxVio", "Eff.", "Dead", "Entr."]
    if any(row.margin is not None for row in figures.table):
        columns.append("Margin")
    if figures.nmi is not None:
        columns.append("NMI")
    return [*columns, "Hottest", "Coldest"]


def _line(row: LayerStatistics, nmi: float | None, experts: int) -> dict[str, str]:
    return {
        "Load": f"{number(row.least_load, 2)}–{number(row.greatest_load, 2)}",
        "MaxVio": number(row.max_violation, 2),
        "Eff.": number(row.effective_experts, 1),
        "Dead": str(row.dead_experts),
        "Entr.": number(row.normalized_entropy, 3),
        "Margin": number(row.margin, 3),
        "NMI": number(nmi, 3),
        "Hottest": _experts(row.hottest[:experts]),
        "Coldest": _experts(row.coldest[:experts]),
    }


def _experts(experts: Sequence[tuple[int, float]]) -> str:
    return " ".join(str(expert) for expert, _ in experts if not math.isnan(experts[0][1]))


def _summary(figures: Figures) -> list[tuple[str, dict[str, str]]]:
    """The smallest, the median and the largest over the layers, column by column."""
    found = totals(figures.table)
    names = {
        "MaxVio": ("max_violation", 2),
        "Eff.": ("effective_experts", 1),
        "Dead": ("dead_experts", 0),
        "Entr.": ("normalized_entropy", 3),
        "Margin": ("margin", 3),
    }
    lines = [("least", "min"), ("median", "p50"), ("most", "max")]
    return [
        (name, {column: number(found[key][cut], digits) for column, (key, digits) in names.items()})
        for name, cut in lines
    ]


def number(value: float | None, digits: int) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
