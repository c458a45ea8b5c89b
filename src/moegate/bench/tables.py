"""Rows as tables: one line a variant, times and ratios for each number of threads side by side."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moegate.bench.cases import sizes
from moegate.bench.machine import BUSY_CORES
from moegate.bench.results import Row
from moegate.bench.units import duration

if TYPE_CHECKING:
    from rich.table import Table

Cases = dict[str, dict[int, Row]]


def by_case(rows: Sequence[Row]) -> Cases:
    """Key -> threads -> row, in the order in which the cases first came; a later row replaces an earlier one."""
    found: Cases = {}
    for row in rows:
        found.setdefault(row["key"], {})[row["threads"]] = row
    return found


def thread_numbers(rows: Sequence[Row]) -> list[int]:
    """The numbers of threads that were measured."""
    return sorted({row["threads"] for row in rows})


def tell_cases(rows: Sequence[Row], *, title: str) -> "list[Table | str]":
    """The table of a suite, what it says about growth, and what is missing and why."""
    from rich.table import Table  # here, so that the cases can be listed without it

    threads = thread_numbers(rows)
    table = Table(title=title, title_justify="left")
    table.add_column("case")
    for number in threads:
        table.add_column(f"{number} thread" + "s" * (number > 1), justify="right", no_wrap=True)
        table.add_column("×", justify="right", no_wrap=True)
    for of_threads in by_case(rows).values():
        _add_case(table, of_threads, threads)
    legend = "Minimum (median) of interleaved rounds; ×: the time as a multiple of moegate's, so above 1 is slower."
    return [table, legend, *growth(rows), *troubles(rows), *absences(rows), *disturbances(rows)]


def _add_case(table: "Table", of_threads: dict[int, Row], threads: list[int]) -> None:
    from rich.markup import escape

    some = next(iter(of_threads.values()))
    table.add_row(f"[bold]{escape(some['case'])}[/]  {sizes(some['shape'])}", *[""] * (2 * len(threads)))
    for name in some["variants"]:
        cells = [cell for number in threads for cell in _cells(of_threads.get(number), name)]
        table.add_row(f"  {escape(name)}", *cells)
    if "floor" in some:
        cells = [cell for number in threads for cell in _floor_cells(of_threads.get(number))]
        table.add_row(f"  [dim]floor, by {some['floor']['bound']}[/]", *cells)
    table.add_section()


def _cells(row: Row | None, name: str) -> tuple[str, str]:
    entry = {} if row is None else row["variants"].get(name, {})
    if row is None or not entry:
        return "", ""
    if "trouble" in entry:
        return f"[bold red]{entry['trouble'].split(':')[0]}[/]", ""
    times = f"{duration(entry['min_us'])} ({duration(entry['median_us'])})"
    ratio = row["ratios"].get(name)
    return times, "" if ratio is None else f"{ratio['min']:.2f}"


def _floor_cells(row: Row | None) -> tuple[str, str]:
    ours = None if row is None else ours_of(row)
    if row is None or ours is None:
        return "", ""
    return f"[dim]{duration(row['floor']['us'])}[/]", f"[dim]{row['floor']['us'] / ours['min_us']:.2f}[/]"


def ours_of(row: Row) -> dict[str, Any] | None:
    """The times of the variant that all ratios are to; None when it was not timed."""
    ours = next((entry for entry in row["variants"].values() if entry["ours"]), None)
    return ours if ours is not None and "min_us" in ours else None


def growth(rows: Sequence[Row]) -> Iterator[str]:
    """How time grows with a size: the exponent of a line through the logarithms, for cases named ``growth in X``."""
    names = dict.fromkeys(row["case"] for row in rows if row["case"].startswith("growth in "))
    for name in names:
        letter = name.removeprefix("growth in ")
        for threads in thread_numbers(rows):
            timed = [
                (row["shape"][letter], ours["min_us"], row)
                for row in rows
                if row["case"] == name and row["threads"] == threads and (ours := ours_of(row)) is not None
            ]
            if len(timed) >= 2:
                exponent = slope([size for size, _, _ in timed], [us for _, us, _ in timed])
                yield f"{name}, {threads} threads: time grows as {letter}^{exponent:.2f}{_memory(timed[-1][2])}."


def _memory(row: Row) -> str:
    facts = row["facts"]
    if facts.get("peak_bytes") is None:
        return ""
    beyond = (facts["peak_bytes"] - facts["output_bytes"]) / 2**20
    return f"; at {sizes(row['shape'])} it takes {beyond:.1f} MiB beyond its input and output"


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms.

    Example:
        >>> round(slope([1, 10, 100], [3, 30, 300]), 6)
        1.0
    """
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = sum(log_x) / len(log_x), sum(log_y) / len(log_y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in log_x)


def troubles(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each variant that got no time because its result was wrong, or because it failed."""
    found = {
        f"Not timed: {name} at {row['key']}: {entry['trouble']}."
        for row in rows
        for name, entry in row["variants"].items()
        if "trouble" in entry
    }
    yield from sorted(found)


def absences(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each peer and reason, with the cases that it is about."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row["missing"].items():
            seen = cases.setdefault((name, reason), [])
            if row["key"] not in seen:
                seen.append(row["key"])
    total = len(by_case(rows))
    for (name, reason), keys in cases.items():
        where = "everywhere" if len(keys) == total else f"at {', '.join(keys)}"
        yield f"Without {name} {where}: {reason}."


def disturbances(rows: Sequence[Row]) -> Iterator[str]:
    """A warning when other programs kept the machine busy while something was timed."""
    busy = [row["others_cores"] for row in rows if (row["others_cores"] or 0.0) > BUSY_CORES]
    if busy:
        yield (
            f"Disturbed: during {len(busy)} of {len(rows)} measurements other programs used more than {BUSY_CORES} "
            f"cores, up to {max(busy):.1f}. Close them and measure again before you rely on a number."
        )
