"""What is wrong gets no time and says how wrong it is; ratios are to ours; every row says what it is worth."""

import time

import pytest
import torch

from moegate.bench.cases import Case, Variant, Work
from moegate.bench.limits import Limits
from moegate.bench.measuring import measure, ratios, verdicts
from moegate.bench.timing import Effort, Timing

LIMITS = Limits({2**20: 1e9, 2**23: 5e8}, {"float32": 1e9, "bfloat16": 2e9})
SHORT = Effort(rounds=3, round_seconds=1e-4, variant_seconds=1e-3)


def is_two(result):
    return None if result == 2 else f"got {result} instead of 2"


def case_of(*variants, **changed):
    settings = {"work": Work(num_bytes=1000), **changed}
    return Case("two", {"T": 1}, "a constant", tuple(variants), is_two, **settings)


def ours(call=lambda: 2):
    return Variant("ours", call, ours=True)


def test_a_wrong_variant_gets_no_time_and_says_by_how_much():
    row = measure(case_of(ours(), Variant("wrong", lambda: 3)), 1, LIMITS, SHORT)
    assert row["variants"]["wrong"] == {"ours": False, "trouble": "wrong: got 3 instead of 2"}
    assert row["variants"]["ours"]["min_us"] > 0
    assert row["ratios"] == {}


def test_a_failing_variant_costs_no_other_one():
    def fails():
        raise RuntimeError("unsupported size\nwith details")

    found = verdicts(case_of(ours(), Variant("failing", fails), Variant("right", lambda: 2)))
    assert found == {"failing": "failed: RuntimeError: unsupported size"}


def test_a_result_is_read_before_it_is_judged():
    assert verdicts(case_of(ours(), Variant("boxed", lambda: [2], read=lambda box: box[0]))) == {}
    assert "wrong" in verdicts(case_of(ours(), Variant("boxed", lambda: [2])))["boxed"]


def test_nothing_is_relative_to_ours_when_ours_is_wrong():
    row = measure(case_of(ours(lambda: 1), Variant("right", lambda: 2)), 1, LIMITS, SHORT)
    assert row["ratios"] == {}
    assert "trouble" in row["variants"]["ours"]
    assert row["variants"]["right"]["min_us"] > 0


def test_ratios_are_to_the_first_of_ours():
    case = case_of(ours(), Variant("second", lambda: 2, ours=True), Variant("peer", lambda: 2))
    timings = {"ours": Timing(2.0, 4.0, 3), "second": Timing(4.0, 4.0, 3), "peer": Timing(10.0, 40.0, 3)}
    assert ratios(case, timings) == {"second": {"min": 2.0, "median": 1.0}, "peer": {"min": 5.0, "median": 10.0}}


def test_a_slower_peer_has_a_ratio_above_one():
    case = case_of(ours(), Variant("slow", lambda: time.sleep(0.002) or 2))
    assert measure(case, 1, LIMITS, SHORT)["ratios"]["slow"]["min"] > 10


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_measured_with_its_threads_and_says_so(threads):
    seen = set()
    case = case_of(ours(lambda: seen.add(torch.get_num_threads()) or 2))
    assert measure(case, threads, LIMITS, SHORT)["threads"] == threads
    assert seen == {threads}


def test_a_row_keeps_facts_reasons_and_how_busy_the_machine_was():
    row = measure(case_of(ours(), missing={"peer": "not installed"}, facts={"bytes": lambda: 7}), 1, LIMITS, SHORT)
    assert row["facts"] == {"bytes": 7}
    assert row["missing"] == {"peer": "not installed"}
    assert row["load_average"] >= 0
    assert row["others_cores"] is None or row["others_cores"] >= 0


@pytest.mark.parametrize(
    ("work", "floor"),
    [
        (Work(num_bytes=1000), (1.0, "bytes", 1e9)),
        (Work(num_bytes=1000, operations=4000), (4.0, "operations", 1e9)),
        (Work(num_bytes=1000, operations=4000, dtype="bfloat16"), (2.0, "operations", 2e9)),
        # Beyond the first working set the bandwidth is that of the second; beyond all, that of the largest.
        (Work(num_bytes=2**20 + 1), (pytest.approx((2**20 + 1) / 500), "bytes", 5e8)),
        (Work(num_bytes=2**30), (pytest.approx(2**30 / 500), "bytes", 5e8)),
    ],
)
def test_the_floor_is_the_later_of_bytes_and_operations(work, floor):
    assert tuple(LIMITS.floor(work)) == floor


def test_a_case_without_work_has_no_floor():
    assert "floor" not in measure(case_of(ours(), work=None), 1, LIMITS, SHORT)
