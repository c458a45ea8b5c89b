"""What a sitting says: every number beside its floor and target, and no number of a rehearsal at all."""

import re

import pytest

from moegate.bench.gpu.tables import case_lines, check_line, failures, report

TIMING = {"min_us": 5.0, "median_us": 6.0, "low_us": 5.5, "high_us": 7.0, "rounds": 9}
CARD = {"name": "some card", "multiprocessors": 132, "memory_gib": 80.0, "l2_mib": 50.0}
KNOWN = {"card": CARD, "versions": {"torch": "2.11.0", "numpy": None}, "commit": "abc", "time": "then"}


def case_row(**changed):
    variants = {
        "moegate topk_gate": {
            "ours": True,
            **TIMING,
            "how": "graph",
            "calls": 50,
            "cold": {**TIMING, "median_us": 8.0},
        },
        "PyTorch": {"ours": False, **TIMING, "median_us": 60.0, "how": "eager", "calls": 1, "note": "it waits"},
        "SGLang": {"ours": False, "trouble": "wrong: chose other experts"},
    }
    target = {"us": 10.0, "floors": None, "best_peers": None, "share": None, "cold": False, "published": "13.9 µs, X"}
    row = {
        **KNOWN, "suite": "gate", "key": "softmax T=8192", "rehearsal": False, "variants": variants,
        "ratios": {"PyTorch": {"min": 9.0, "median": 10.0}}, "missing": {"moe-ops": "it is not here"}, "parts": {},
        "floor": {"us": 3.0, "bound": "bytes", "rate": 3e12}, "work": {"operations": 0}, "target": target,
        "judged": [{"demand": "≤ 10 µs", "found": 6.0, "unit": "µs", "met": True}],
    }  # fmt: skip
    return {**row, **changed}


LIMITS = {
    **KNOWN, "suite": "gate", "key": "limits", "rehearsal": False,
    "limits": {"copy": 3.0e12, "read": 3.1e12, "operations": {"bfloat16": 7.9e14}, "smallest_us": 1.3},
}  # fmt: skip


def check_row(verdict, **changed):
    return {
        **KNOWN,
        "suite": "checks",
        "key": "a check",
        "rehearsal": False,
        "verdict": verdict,
        "seconds": 1.0,
        **changed,
    }


def test_a_case_as_it_is_printed():
    text = "\n".join(case_lines(case_row()))
    assert "softmax T=8192: floor 3.00 µs, by bytes" in text
    assert re.search(
        r"moegate topk_gate +6\.00 µs +\(5\.50 µs to 7\.00 µs\) +cold 8\.00 µs +2\.00 × floor +graph of 50", text
    )
    assert "10.00 × moegate" in text
    assert "eager: it waits" in text
    assert "wrong: chose other experts" in text
    assert "without moe-ops: it is not here" in text
    assert "must be ≤ 10 µs: met (6.00 µs)" in text
    assert case_lines({"key": "a", "failed": "MemoryError: x"}) == ["a: not measured: MemoryError: x"]


def test_the_report_has_everything():
    missed = [{"demand": "≤ 10 µs", "found": 12.0, "unit": "µs", "met": False}]
    rows = [
        LIMITS, case_row(), case_row(key="other", judged=missed), check_row("bits differ"), check_row(None),
        {**KNOWN, "suite": "more", "key": "late", "rehearsal": False, "skipped": "the time was over"},
        {**KNOWN, "suite": "layer", "key": "big", "rehearsal": False, "failed": "MemoryError"},
    ]  # fmt: skip
    text = report(rows)
    assert "some card: 132 multiprocessors, 80.0 GiB, 50.0 MiB of L2 cache. torch 2.11.0. Commit abc, then." in text
    assert "it copies 3.00 TB/s" in text
    assert "multiplies 790 TFLOP/s in bfloat16" in text
    assert "| softmax T=8192 | ≤ 10 µs | 13.9 µs, X | 3.00 µs | 6.00 µs | PyTorch 60.0 µs | 6.00 µs | met |" in text
    assert "| **missed** |" in text
    assert "| a check | **bits differ** |" in text
    assert "- softmax T=8192: SGLang: wrong: chose other experts" in text
    assert "- big: MemoryError" in text
    assert "- more late: the time was over" in text
    assert "- moe-ops: it is not here (at 2 cases, softmax T=8192 the first)" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith(("|  |", "| softmax"))}
    assert len(widths) == 2  # the table of targets and that of the cases, each of one width


def test_layers_have_rates_and_parts():
    row = case_row(work={"operations": 6e12}, parts={"combine": TIMING})
    text = report([row])
    assert "1000000 TFLOP/s" in text.replace(",", "")
    assert "of which combine | 6.00 µs" in text


def test_a_rehearsal_shows_no_time():
    rows = [{**row, "rehearsal": True} for row in (LIMITS, case_row(parts={"combine": TIMING}), check_row(None))]
    for text in (report(rows), "\n".join(case_lines(rows[1]))):
        assert not re.search(r"\d µs|\d ms|TB/s|\d\.\d\d ×|\d met", text.replace("13.9 µs", "").replace("10 µs", ""))
    assert "nothing here was measured" in report(rows)
    assert "met" not in report(rows).split("## Checks")[0]


def test_what_fails_the_command():
    assert failures([case_row(), check_row(None)]) == []
    ours = {"moegate": {"ours": True, "trouble": "wrong: x"}}
    rows = [check_row("bits differ"), case_row(variants=ours), {"key": "big", "failed": "MemoryError"}]
    assert failures(rows) == ["a check: bits differ", "big: MemoryError", "softmax T=8192: moegate: wrong: x"]


@pytest.mark.parametrize(
    ("verdict", "said"), [(None, "check a check: right (1.0 s)"), ("x", "check a check: WRONG: x (1.0 s)")]
)
def test_a_check_as_it_is_printed(verdict, said):
    assert check_line(check_row(verdict)) == said


def test_nothing():
    assert report([]) == "Nothing was measured.\n"
