"""``moegate bench topk``: which way to find the k greatest is fast where, in time and memory."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from moegate.bench.cases import Case, Entry, Variant, sizes
from moegate.bench.memory import peak_bytes
from moegate.bench.oracles.topk import TopKOracle
from moegate.bench.pictures import pyplot, save, source
from moegate.bench.results import Row
from moegate.bench.suites.suite import Part, Suite
from moegate.bench.tables import disturbances, thread_numbers, troubles
from moegate.ops.ordered_topk import ordered_topk
from moegate.ops.ordered_topk.algorithms import NAMES, scratch_bytes, topk_by_algorithm

OURS = "moegate ordered_topk"
TORCH = "torch.topk"
LENGTHS = tuple(2**exponent for exponent in range(3, 17))
KS = (1, 2, 4, 8, 16, 32, 64)
_ELEMENTS = 2**18  # of all rows of a case together: one MiB, which any second- or third-level cache holds
_LEAST_ROWS = 8
_MOST_ROWS = 4096
_NEARLY = 1.05
_LANES, _MOST_MAXIMA = 16, 1024
_WAYS = (
    "Lanes: ours bounds the k-th greatest by the maxima of so many lanes, and ranks what reaches the bound; all: every "
    "element is ranked by counting the greater ones; none: the bound is found by bisection over the keys."
)
QUICK = ((64, 8), (2048, 8))


def topk_case(num_elements: int, k: int) -> Case:
    """The indices of the ``k`` greatest of each row, by every algorithm."""
    rows = min(_MOST_ROWS, max(_LEAST_ROWS, _ELEMENTS // num_elements))
    values = torch.randn(rows, num_elements, generator=torch.Generator().manual_seed(num_elements))

    def by_algorithm(name: str) -> Variant:
        return Variant(name, partial(topk_by_algorithm, values, k, name))

    variants = (
        Variant(OURS, partial(ordered_topk, values, k), ours=True),
        *(by_algorithm(name) for name in NAMES),
        Variant(TORCH, partial(torch.topk, values, k), read=lambda found: found.indices),
    )
    facts: dict[str, Any] = {"scratch_bytes": lambda: scratch(num_elements, k)}
    if num_elements == LENGTHS[-1]:
        # With one row a thread, so that the memory of one row shows.
        row = values[:1].clone()
        facts["peak_bytes"] = lambda: {
            **{name: peak_bytes(partial(topk_by_algorithm, row, k, name)) for name in NAMES},
            OURS: peak_bytes(partial(ordered_topk, row, k)),
            TORCH: peak_bytes(partial(torch.topk, row, k)),
        }
    return Case(
        name="topk",
        shape={"N": num_elements, "k": k, "rows": rows},
        timed="float32 rows to int64 indices, sorted; torch.topk returns the values as well",
        variants=variants,
        check=TopKOracle(values, k).verdict,
        facts=facts,
    )


def scratch(num_elements: int, k: int) -> dict[str, int | None]:
    """Bytes that one thread allocates beside input and output, by variant; None where that is not known."""
    # torch.topk copies a row into pairs of a float and an int64, of 16 bytes (aten/src/ATen/native/TopKImpl.h).
    return {**{name: scratch_bytes(name, num_elements, k) for name in NAMES}, TORCH: 16 * num_elements}


def entries() -> list[Entry]:
    """The grid of lengths and k; two points of it when quick."""
    grid = [(length, k) for length in LENGTHS for k in KS if k <= length]
    return [_entry(length, k, quick=False) for length, k in grid] + [_entry(*point, quick=True) for point in QUICK]


def _entry(num_elements: int, k: int, *, quick: bool) -> Entry:
    return Entry(f"topk {sizes({'N': num_elements, 'k': k})}", partial(topk_case, num_elements, k), quick)


def per_row_us(row: Row, name: str) -> float | None:
    """Microseconds a row; None for a variant that was not timed."""
    entry = row["variants"].get(name, {})
    return entry["min_us"] / row["shape"]["rows"] if "min_us" in entry else None


def curve(rows: Sequence[Row], name: str, k: int, threads: int) -> list[tuple[int, float]]:
    """``(N, microseconds a row)`` of one variant at one k, by N."""
    points = {
        row["shape"]["N"]: us
        for row in rows
        if row["shape"]["k"] == k and row["threads"] == threads and (us := per_row_us(row, name)) is not None
    }
    return sorted(points.items())


def kernel_way(num_elements: int, k: int) -> str:
    """Of how many lanes ``ordered_topk`` takes maxima to bound the k-th greatest (its kernel: ``ops/cpu/selection.h``).

    Example:
        >>> kernel_way(8, 2), kernel_way(256, 8), kernel_way(65536, 64)
        ('all', '16', '192')
    """
    lanes = 3 * k + -3 * k % _LANES
    if num_elements <= (_LANES if k <= _LANES else 2 * _LANES):
        return "all"
    if k <= _LANES:
        return str(_LANES if 2 * k <= _LANES else 2 * _LANES)
    if lanes <= _MOST_MAXIMA and 2 * lanes <= num_elements:
        return str(lanes)
    return "none"


def fastest(rows: Sequence[Row], k: int, threads: int) -> list[tuple[int, str]]:
    """``(N, name)``: the fastest of the four algorithms at each length; the one before stays while it is within 5 %."""
    curves = {name: dict(curve(rows, name, k, threads)) for name in NAMES}
    found: list[tuple[int, str]] = []
    for length in sorted(set.intersection(*(set(points) for points in curves.values()))):
        times = {name: points[length] for name, points in curves.items()}
        best = min(times, key=times.__getitem__)
        if found and times[found[-1][1]] <= _NEARLY * times[best]:
            best = found[-1][1]
        found.append((length, best))
    return found


def crossovers(rows: Sequence[Row], k: int, threads: int) -> list[tuple[float, str, str]]:
    """``(N, before, after)``: where the fastest of the four algorithms changes, between two measured lengths.

    The place is where the two curves meet when they are straight on logarithmic axes.
    """
    curves = {name: dict(curve(rows, name, k, threads)) for name in NAMES}
    found = []
    for (low, before), (high, after) in pairwise(fastest(rows, k, threads)):
        if before != after:
            ahead, behind = (math.log(curves[after][n] / curves[before][n]) for n in (low, high))
            # Where the newcomer was as fast already, at the lower end.
            share = ahead / (ahead - behind) if ahead > 0 else 0.0
            found.append((low * (high / low) ** share, before, after))
    return found


def tell(rows: Sequence[Row]) -> list[Part]:
    """Times a row, where the fastest algorithm changes, and the memory of the longest rows."""
    found: list[Part] = []
    for threads in thread_numbers(rows):
        found.append(_times_table([row for row in rows if row["threads"] == threads], threads))
        for k in sorted({row["shape"]["k"] for row in rows}):
            steps = [f"from N = {n:,.0f} on {after}, not {before}" for n, before, after in crossovers(rows, k, threads)]
            if steps:
                found.append(f"k={k}, {threads} threads, of the four: {'; '.join(steps)}.")
    return [*found, _WAYS, _memory_table(rows), *troubles(rows), *disturbances(rows)]


def _times_table(rows: Sequence[Row], threads: int) -> Table:
    names = list(rows[0]["variants"])
    title = f"µs a row, {threads} thread{'s' * (threads > 1)}; bold: the fastest of the four algorithms"
    table = Table("N", "k", "lanes", title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        times = {name: per_row_us(row, name) for name in names}
        studied = [us for name in NAMES if (us := times.get(name)) is not None]
        best = min(studied, default=None)
        cells = [_cell(us, us == best and name in NAMES) for name, us in times.items()]
        length, k = row["shape"]["N"], row["shape"]["k"]
        table.add_row(f"{length:,}", str(k), kernel_way(length, k), *cells)
    return table


def _cell(us: float | None, best: bool) -> str:
    if us is None:
        return "[bold red]wrong[/]"
    digits = f"{us:,.0f}" if us >= 1000 else f"{us:.3g}"
    return f"[bold]{digits}[/]" if best else digits


def _memory_table(rows: Sequence[Row]) -> Table:
    row = max(rows, key=lambda row: (row["shape"]["N"], row["shape"]["k"]))
    title = f"Memory of one thread beside input and output, N={row['shape']['N']} k={row['shape']['k']}"
    table = Table("algorithm", title=title, title_justify="left")
    table.add_column("allocates", justify="right")
    table.add_column("resident at the peak", justify="right")
    allocated, resident = row["facts"]["scratch_bytes"], row["facts"].get("peak_bytes", {})
    for name in row["variants"]:
        table.add_row(name, _bytes(allocated.get(name)), _bytes(resident.get(name)))
    return table


def _bytes(number: int | None) -> str:
    return "–" if number is None else f"{number:,} B" if number < 8192 else f"{number / 1024:,.0f} KiB"


_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
_COLOURS = {
    OURS: "#222222",
    "full_sort": "#ff725c",
    "heap": "#efb118",
    "quickselect": "#6cc5b0",
    "blocked": "#4269d0",
    TORCH: "#a463f2",
}


def draw(rows: Sequence[Row], base: Path) -> list[Path]:
    """One panel for each k: nanoseconds an element over N, the crossover points of the four algorithms marked."""
    plt = pyplot()
    threads = min(thread_numbers(rows))  # one row is found by one thread, so the fewest threads show it best
    panels = [k for k in (1, 2, 8, 16, 32, 64) if len(curve(rows, OURS, k, threads)) > 1]
    if plt is None or not panels:
        return []
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.3 * lines), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, k in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, rows, k, threads)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize=8, bbox_to_anchor=(0.5, 0.0))
    figure.suptitle("The k greatest of N: time an element; dotted: where the fastest of the four changes", fontsize=12)
    figure.text(0.5, -0.06, source(rows[-1]) + f", {threads} thread", ha="center", fontsize=7, color="#555555")
    figure.tight_layout()
    files = save(figure, base)
    plt.close(figure)
    return files


def _draw_panel(axis: Any, rows: Sequence[Row], k: int, threads: int) -> None:
    for name, colour in _COLOURS.items():
        points = curve(rows, name, k, threads)
        width = 2.2 if name == OURS else 1.3
        axis.plot([n for n, _ in points], [us / n * 1e3 for n, us in points], color=colour, label=name, linewidth=width)
    for place, before, after in crossovers(rows, k, threads):
        axis.axvline(place, color="#888888", linestyle=":", linewidth=1)
        label = f"{before} → {after}, N={place:,.0f}"
        across = axis.get_xaxis_transform()
        axis.text(place, 0.98, label, fontsize=6, rotation=90, ha="right", va="top", transform=across, bbox=_PAPER)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title(f"k = {k}", fontsize=10)
    axis.set_xlabel("N", fontsize=9)
    axis.set_ylabel("ns an element", fontsize=9)
    axis.grid(linewidth=0.3, alpha=0.6)


SUITE = Suite(
    name="topk",
    entries=entries,
    tell=tell,
    draw=draw,
)
