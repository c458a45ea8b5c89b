"""Whether a measured row reaches its target."""

from typing import Any

from moegate.bench.cases import Target
from moegate.bench.results import Row
from moegate.bench.suites.layer import PRODUCTS


def time_of(entry: dict[str, Any], *, cold: bool) -> float | None:
    """The median of a contender: cold where that is asked for and known; None when it was not timed."""
    timing = entry.get("cold", entry) if cold else entry
    found: float | None = timing.get("median_us")
    return found


def ours_of(row: Row) -> dict[str, Any]:
    """The first contender that is moegate."""
    return next(entry for entry in row["variants"].values() if entry["ours"])


def best_peer(row: Row, *, cold: bool) -> tuple[str, float] | None:
    """The fastest contender that is not moegate, and its time."""
    timed = {name: time_of(entry, cold=cold) for name, entry in row["variants"].items() if not entry["ours"]}
    known = {name: us for name, us in timed.items() if us is not None}
    return min(known.items(), key=lambda item: item[1]) if known else None


def share(row: Row) -> float | None:
    """The part of moegate's time that is not the products of its experts; None where they were not timed alone."""
    ours, products = time_of(ours_of(row), cold=False), row["parts"].get(PRODUCTS)
    return None if ours is None or products is None else 1.0 - products["median_us"] / ours


def judged(row: Row, target: Target) -> list[dict[str, Any]]:
    """Each demand of a target in words, what was found, and whether that is enough (None: it can't be said)."""
    ours = time_of(ours_of(row), cold=target.cold)
    found = []
    if target.us is not None:
        found.append(_judgement(f"≤ {target.us:g} µs", ours, target.us, "µs"))
    if target.floors is not None:
        floors = None if ours is None or "floor" not in row else ours / row["floor"]["us"]
        found.append(_judgement(f"≤ {target.floors:g} × the floor", floors, target.floors, "×"))
    if target.best_peers is not None:
        peer = best_peer(row, cold=target.cold)
        ratio = None if ours is None or peer is None else ours / peer[1]
        found.append(_judgement(f"≤ {target.best_peers:g} × the best peer", ratio, target.best_peers, "×"))
    if target.share is not None:
        found.append(_judgement(f"≤ {target.share:.0%} beside the products", share(row), target.share, ""))
    return found


def _judgement(demand: str, value: float | None, most: float, unit: str) -> dict[str, Any]:
    return {"demand": demand, "found": value, "unit": unit, "met": None if value is None else value <= most}
