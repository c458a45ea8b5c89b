"""Rows as a picture, where matplotlib is installed (the extra ``lab``): bars of ratios, one group a case."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moegate.bench.cases import sizes
from moegate.bench.results import Row
from moegate.bench.tables import by_case, thread_numbers

_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
_GREY = "#555555"


def pyplot() -> Any:
    """Matplotlib's drawing functions on no screen; None without the package."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure: Any, base: Path) -> list[Path]:
    """Writes ``BASE.png`` and ``BASE.svg``."""
    base.parent.mkdir(parents=True, exist_ok=True)
    files = [base.parent / f"{base.name}{suffix}" for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=130, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def source(row: Row) -> str:
    """Where and with what a row was measured, for the foot of a picture."""
    machine, versions = row["machine"], row["versions"]
    return (
        f"{machine['model']}, {machine['cores']} cores, kernels: {machine['kernels']}, torch {versions['torch']}, "
        f"commit {row['commit']}, {row['time'][:10]}"
    )


def draw_bars(rows: Sequence[Row], base: Path, *, title: str) -> list[Path]:
    """Bars of the ratios to moegate on a logarithmic axis, one panel for each number of threads.

    Returns:
        The files; none without matplotlib or without a ratio.
    """
    plt = pyplot()
    rows = [row for row in rows if row["ratios"]]
    if plt is None or not rows:
        return []
    cases, threads = by_case(rows), thread_numbers(rows)
    names = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    lines = sum(len(_named(of_threads)) + 0.8 for of_threads in cases.values())
    figure, axes = plt.subplots(
        1, len(threads), figsize=(1.5 + 5.2 * len(threads), 1.4 + 0.21 * lines), sharey=True, squeeze=False
    )
    for axis, number in zip(axes[0], threads, strict=True):
        _draw_panel(axis, cases, number, colours)
        axis.set_title(f"{number} thread" + "s" * (number > 1), fontsize=10)
        axis.set_xlabel("time as a multiple of moegate's", fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.suptitle(title, fontsize=12, y=1.0)
    figure.legend(handles, names, loc="upper center", ncols=min(4, len(names)), fontsize=8, bbox_to_anchor=(0.5, 0.0))
    figure.text(0.5, -0.09 if len(names) > 4 else -0.06, source(rows[-1]), ha="center", fontsize=7, color=_GREY)
    figure.tight_layout()
    files = save(figure, base)
    plt.close(figure)
    return files


def _named(of_threads: dict[int, Row]) -> list[str]:
    return list(dict.fromkeys(name for row in of_threads.values() for name in row["ratios"]))


def _draw_panel(axis: Any, cases: dict[str, dict[int, Row]], number: int, colours: dict[str, str]) -> None:
    place, ticks, labels = 0.0, [], []
    for of_threads in cases.values():
        names = _named(of_threads)
        ticks.append(place + (len(names) - 1) / 2)
        some = next(iter(of_threads.values()))
        labels.append(f"{some['case']}\n{sizes(some['shape'])}")
        row = of_threads.get(number)
        for name in names:
            ratio = None if row is None else row["ratios"].get(name)
            if ratio is not None:
                axis.barh(place, ratio["min"] - 1, left=1, height=0.85, color=colours[name])
                axis.text(max(ratio["min"], 1) * 1.04, place, f"{ratio['min']:.3g}", va="center", fontsize=7)
            place += 1
        place += 0.8
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=1)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 0.5), high * 1.6)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(ticks, labels, fontsize=8)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()
    axis.grid(axis="x", which="major", linewidth=0.4, alpha=0.6)
    axis.spines[["top", "right"]].set_visible(False)
