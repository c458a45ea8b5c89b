"""Targets are judged by the measured times of the same row, and never without them."""

import pytest

from moegate.bench.cases import Target
from moegate.bench.gpu.targets import best_peer, judged, share, time_of
from moegate.bench.suites.layer import PRODUCTS


def row(ours=6.0, cold=None, peers=None, floor=5.0, products=None):
    entry = {"ours": True} if ours is None else {"ours": True, "median_us": ours}
    if cold is not None:
        entry["cold"] = {"median_us": cold}
    others = {name: {"ours": False, **timing} for name, timing in (peers or {}).items()}
    parts = {} if products is None else {PRODUCTS: {"median_us": products}}
    return {"variants": {"moegate": entry, **others}, "floor": {"us": floor}, "parts": parts}


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(us=6.0), True),
        (Target(us=5.9), False),
        (Target(floors=1.2), True),
        (Target(floors=1.19), False),
        (Target(best_peers=1.0), True),
        (Target(best_peers=0.7), False),
        (Target(share=0.5), True),
        (Target(share=0.4), False),
        (Target(us=6.0, cold=True), False),
    ],
)
def test_each_demand(target, met):
    measured = row(6.0, 8.0, {"a": {"median_us": 8.0}, "b": {"median_us": 9.0}, "c": {"trouble": "wrong"}}, 5.0, 3.0)
    (found,) = judged(measured, target)
    assert found["met"] is met


def test_nothing_is_met_without_a_time():
    everything = Target(us=1, floors=1, best_peers=1, share=1)
    assert [found["met"] for found in judged(row(None, peers={"a": {"median_us": 1.0}}), everything)] == [None] * 4
    assert [found["met"] for found in judged(row(), Target(best_peers=1))] == [None]


def test_the_cold_time_where_there_is_one():
    assert time_of({"median_us": 1.0, "cold": {"median_us": 2.0}}, cold=True) == 2.0
    assert time_of({"median_us": 1.0}, cold=True) == 1.0
    peers = {"a": {"median_us": 1.0, "cold": {"median_us": 9.0}}, "b": {"median_us": 2.0}}
    assert best_peer(row(peers=peers), cold=True) == ("b", 2.0)
    assert best_peer(row(peers=peers), cold=False) == ("a", 1.0)
    assert share(row()) is None
