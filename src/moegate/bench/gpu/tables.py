"""Rows of a sitting as plain text and as Markdown; a rehearsal's times are never shown."""

from collections.abc import Iterable, Sequence
from typing import Any

from moegate.bench.gpu.entries import SUITES
from moegate.bench.gpu.targets import best_peer, ours_of, time_of
from moegate.bench.gpu.timing import EAGER
from moegate.bench.results import Row
from moegate.bench.units import duration

NOT_SHOWN = "–"


def case_lines(row: Row) -> list[str]:
    """What is printed when a case is done."""
    if "failed" in row:
        return [f"{row['key']}: not measured: {row['failed']}"]
    lines = [f"{row['key']}{_floor_words(row)}"]
    for name, entry in row["variants"].items():
        lines.append("  " + "  ".join((name.ljust(28), *_cells(row, name, entry))).rstrip())
    lines += [f"  of which {name}: {_time(row, part['median_us'])}" for name, part in row["parts"].items()]
    lines += [f"  without {name}: {reason}" for name, reason in row["missing"].items()]
    return lines + [f"  must be {judgement_words(row, judgement)}" for judgement in row.get("judged", [])]


def check_line(row: Row) -> str:
    """What is printed when a check is done."""
    verdict = "right" if row["verdict"] is None else f"WRONG: {row['verdict']}"
    return f"check {row['key']}: {verdict} ({row['seconds']:.1f} s)"


def judgement_words(row: Row, judgement: dict[str, Any]) -> str:
    """A demand, whether it is met, and what was found."""
    if judgement["met"] is None:
        return f"{judgement['demand']}: not measured"
    return f"{judgement['demand']}: {_verdict(row, judgement)} ({_found(row, judgement)})"


def report(rows: Sequence[Row]) -> str:
    """The whole of a sitting as Markdown: what must be reached, what was checked, every case, what is missing."""
    cases = [row for row in rows if "variants" in row]
    parts = [
        _head(rows),
        _limits(rows),
        _must_reach(cases),
        _checks(rows),
        *(_suite(name, [row for row in cases if row["suite"] == name]) for name in SUITES),
        _sentences("Not timed", _troubles(rows)),
        _sentences("Peers that took no part", _absences(cases)),
        _sentences("Not reached in time", _skipped(rows)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def failures(rows: Sequence[Row]) -> list[str]:
    """What of moegate is wrong or failed: the checks, and its own results in the cases."""
    checks = [f"{row['key']}: {row['verdict']}" for row in rows if row.get("verdict") is not None]
    cases = [f"{row['key']}: {row['failed']}" for row in rows if "failed" in row]
    ours = [
        f"{row['key']}: {name}: {entry['trouble']}"
        for row in rows
        for name, entry in row.get("variants", {}).items()
        if entry["ours"] and "trouble" in entry
    ]
    return [*checks, *cases, *ours]


def _head(rows: Sequence[Row]) -> str:
    if not any("card" in row for row in rows):
        return "Nothing was measured."
    row = next(row for row in reversed(rows) if "card" in row)
    card, versions = row["card"], row["versions"]
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    size = f"{card['multiprocessors']} multiprocessors, {card['memory_gib']} GiB, {card['l2_mib']} MiB of L2 cache"
    lines = [f"{card['name']}: {size}. {known}. Commit {row['commit']}, {row['time']}."]
    if row["rehearsal"]:
        lines.append("**A rehearsal on the CPU: nothing here was measured, and no time is shown.**")
    return "\n\n".join(lines)


def _limits(rows: Sequence[Row]) -> str:
    found = [row["limits"] for row in rows if "limits" in row]
    if not found or any(row.get("rehearsal") for row in rows):
        return ""
    best = max(found, key=lambda limits: float(limits["copy"]))
    rates = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {dtype}" for dtype, rate in best["operations"].items())
    return (
        f"What this card can do, measured in the same run: it copies {best['copy'] / 1e12:.2f} TB/s (read and written "
        f"bytes together), reads {best['read'] / 1e12:.2f} TB/s and multiplies {rates}. The smallest kernel takes "
        f"{best['smallest_us']:.2f} µs in a graph. Floors are bytes at the rate of the copy, or operations at the rate "
        "of the product, whichever is later."
    )


def _must_reach(cases: Sequence[Row]) -> str:
    lines = []
    for row in cases:
        for judgement in row.get("judged", []):
            cold = bool(row["target"]["cold"])
            peer = best_peer(row, cold=cold)
            ours = time_of(ours_of(row), cold=cold)
            cells = (
                row["key"],
                judgement["demand"],
                row["target"]["published"] or NOT_SHOWN,
                _time(row, row["floor"]["us"]) if "floor" in row else NOT_SHOWN,
                _time(row, ours) if ours is not None else NOT_SHOWN,
                f"{peer[0]} {_time(row, peer[1])}" if peer else NOT_SHOWN,
                _found(row, judgement),
                _verdict(row, judgement),
            )
            lines.append(_line(cells))
    if not lines:
        return ""
    header = ("case", "must be", "published best", "floor", "moegate", "best peer here", "found", "")
    return "\n".join(["## What must be reached", "", _line(header), _line(["---"] * len(header)), *lines])


def _checks(rows: Sequence[Row]) -> str:
    found = [row for row in rows if "verdict" in row]
    if not found:
        return ""
    lines = [_line((row["key"], "right" if row["verdict"] is None else f"**{row['verdict']}**")) for row in found]
    return "\n".join(["## Checks", "", _line(("check", "result")), _line(["---"] * 2), *lines])


def _suite(name: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    header = ("case", "contender", "median", "10 to 90 %", "cold caches", "× moegate", "× floor", "rate", "how")
    lines = [f"## {name}: {SUITES[name]}", "", _line(header), _line(["---"] * len(header))]
    for row in rows:
        case = row["key"]
        for contender, entry in row["variants"].items():
            bold = f"**{contender}**" if entry["ours"] else contender
            lines.append(_line((case, bold, *_cells(row, contender, entry, plain=False))))
            case = ""
        lines += [_line(("", f"of which {part}", _time(row, timing["median_us"]), *[""] * 6))
                  for part, timing in row["parts"].items()]  # fmt: skip
        if "floor" in row:
            lines.append(_line(("", f"floor, by {row['floor']['bound']}", _time(row, row["floor"]["us"]), *[""] * 6)))
    return "\n".join(lines)


def _cells(row: Row, name: str, entry: dict[str, Any], *, plain: bool = True) -> tuple[str, ...]:
    """Median, spread, cold median, ratio to moegate, ratio to the floor, rate, how; labelled when plain."""
    if "trouble" in entry:
        return (entry["trouble"] if plain else f"**{entry['trouble'].split(':')[0]}**", *([] if plain else [""] * 6))
    ratio = row["ratios"].get(name, {}).get("median")
    floors = entry["median_us"] / row["floor"]["us"] if row.get("floor", {}).get("us") else None
    cold = entry.get("cold", {}).get("median_us")
    how = f"eager: {entry.get('note', '')}" if entry["how"] == EAGER else f"graph of {entry['calls']}"
    cells = (
        _time(row, entry["median_us"]),
        f"{_time(row, entry['low_us'])} to {_time(row, entry['high_us'])}",
        "" if cold is None else _time(row, cold),
        "" if ratio is None else _number(row, ratio),
        "" if floors is None else _number(row, floors),
        _rate(row, entry["median_us"]),
        how,
    )
    if not plain:
        return cells
    labels = ("{}", "({})", "cold {}", "{} × moegate", "{} × floor", "{}", "{}")
    return tuple(label.format(cell) for label, cell in zip(labels, cells, strict=True) if cell)


def _rate(row: Row, us: float) -> str:
    operations = row.get("work", {}).get("operations", 0)
    return f"{_number(row, operations / us / 1e6)} TFLOP/s" if operations else ""


def _floor_words(row: Row) -> str:
    return f": floor {_time(row, row['floor']['us'])}, by {row['floor']['bound']}" if "floor" in row else ""


def _verdict(row: Row, judgement: dict[str, Any]) -> str:
    if row["rehearsal"] or judgement["met"] is None:
        return NOT_SHOWN
    return "met" if judgement["met"] else "**missed**"


def _found(row: Row, judgement: dict[str, Any]) -> str:
    value, unit = judgement["found"], judgement["unit"]
    if value is None or row["rehearsal"]:
        return NOT_SHOWN
    return duration(value) if unit == "µs" else f"{value:.2f} ×" if unit else f"{value:.1%}"


def _time(row: Row, us: float) -> str:
    return NOT_SHOWN if row["rehearsal"] else duration(us)


def _number(row: Row, value: float) -> str:
    return NOT_SHOWN if row["rehearsal"] else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _troubles(rows: Sequence[Row]) -> list[str]:
    cases = [f"{row['key']}: {row['failed']}" for row in rows if "failed" in row]
    return cases + [
        f"{row['key']}: {name}: {entry['trouble']}"
        for row in rows
        for name, entry in row.get("variants", {}).items()
        if "trouble" in entry
    ]


def _absences(cases: Sequence[Row]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in cases:
        for name, reason in row["missing"].items():
            found.setdefault(f"{name}: {reason}", []).append(row["key"])
    return [f"{what} (at {len(keys)} cases, {keys[0]} the first)" for what, keys in found.items()]


def _skipped(rows: Sequence[Row]) -> list[str]:
    return [f"{row['suite']} {row['key']}: {row['skipped']}" for row in rows if "skipped" in row]


def _sentences(title: str, sentences: Iterable[str]) -> str:
    lines = [f"- {sentence}" for sentence in sentences]
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
