"""A case on a card: what is wrong or fails gets no time, graphs are checked too, a spoiled card ends the process."""

from itertools import chain, repeat

import pytest

from moegate.bench.cases import Case, Target, Variant, Work
from moegate.bench.gpu.limits import CardLimits
from moegate.bench.gpu.measuring import CAPTURE, Known, Measurement, Spoiled
from moegate.bench.gpu.rehearsal import Rehearsal
from moegate.bench.gpu.timing import Effort
from moegate.bench.suites.layer import PRODUCTS

EFFORT = Effort(graph_us=1.0, most_calls=8, seconds=0.0, rounds=(3, 3), wake_seconds=0.0)
LIMITS = CardLimits(1e12, 1e12, {"float32": 1e12}, 1.0)


def right(found):
    return None if found == 1 else f"got {found}"


def case_of(*variants, **more):
    return Case("some", {"T": 1}, "nothing", variants, right, work=Work(num_bytes=1000), **more)


def row_of(case, card=None, known=None, notes=None):
    keep = (lambda *note: None) if notes is None else (lambda *note: notes.append(note))
    return Measurement(card or Rehearsal(), case, EFFORT, known or Known(), keep).row(LIMITS)


def ours(call=lambda: 1, **more):
    return Variant("moegate", call, ours=True, **more)


def failing():
    raise RuntimeError("no such tile\nand more")


def test_a_right_contender_gets_times_and_a_ratio():
    row = row_of(case_of(ours(), Variant("peer", lambda: 1)))
    for name in ("moegate", "peer"):
        entry = row["variants"][name]
        assert 0 <= entry["min_us"] <= entry["low_us"] <= entry["median_us"] <= entry["high_us"]
        assert entry["how"] == "graph"
    assert set(row["ratios"]) == {"peer"}
    assert row["floor"]["us"] == pytest.approx(1e-3)


def test_wrong_and_failing_contenders_get_no_time():
    row = row_of(case_of(ours(), Variant("wrong", lambda: 2), Variant("fails", failing)))
    assert row["variants"]["wrong"] == {"ours": False, "trouble": "wrong: got 2"}
    assert row["variants"]["fails"] == {"ours": False, "trouble": "failed: RuntimeError: no such tile"}
    assert "median_us" in row["variants"]["moegate"]


def test_what_only_a_graph_gets_wrong_is_found():
    counted = chain([1, 1], repeat(2))  # checked, run to see whether it waits, then captured
    row = row_of(case_of(ours(), Variant("peer", lambda: next(counted))))
    assert row["variants"]["peer"]["trouble"] == "in a graph wrong: got 2"


def test_the_cold_time_is_that_of_all_copies():
    seen = []
    copies = tuple(lambda number=number: seen.append(number) or 1 for number in (1, 2))
    row = row_of(case_of(ours(others=copies)))
    assert row["variants"]["moegate"]["cold"]["rounds"] == 3
    assert set(seen) == {1, 2}
    assert row["ratios"] == {}


def test_parts_are_timed_beside_and_give_the_share():
    case = case_of(ours(), parts=lambda: {PRODUCTS: lambda: None, "combine": lambda: None}, target=Target(share=1.0))
    row = row_of(case)
    assert set(row["parts"]) == {PRODUCTS, "combine"}
    (judgement,) = row["judged"]
    assert judgement["demand"] == "≤ 100% beside the products"
    assert judgement["found"] == pytest.approx(
        1 - row["parts"][PRODUCTS]["median_us"] / row["variants"]["moegate"]["median_us"]
    )


class Spoilt(Rehearsal):
    """A card that answers no more once something failed on it."""

    failed = False

    def wait(self):
        if self.failed:
            raise RuntimeError("an illegal memory access was encountered")


def test_a_card_that_answers_no_more_ends_the_process():
    card = Spoilt()

    def spoiling():
        card.failed = True
        return 1

    notes = []
    with pytest.raises(Spoiled, match="illegal memory access"):
        row_of(case_of(ours(), Variant("peer", spoiling)), card, notes=notes)
    assert notes[-1] == ("peer", "check")


class NoGraphs(Rehearsal):
    """A card whose captures break off."""

    def capture(self, calls):
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_capture_that_breaks_off_ends_the_process_and_is_not_tried_again():
    notes = []
    with pytest.raises(Spoiled, match="moegate: RuntimeError: operation not permitted"):
        row_of(case_of(ours()), NoGraphs(), notes=notes)
    assert notes[-1] == ("moegate", CAPTURE)
    row = row_of(case_of(ours()), NoGraphs(), Known(eager=frozenset({"moegate"})))
    assert row["variants"]["moegate"]["note"] == "its capture failed"


def test_what_was_lost_before_is_not_run_again():
    row = row_of(case_of(ours(), Variant("peer", failing)), known=Known(lost={"peer": "it hung"}))
    assert row["variants"]["peer"] == {"ours": False, "trouble": "it hung"}


def test_what_other_cases_found_about_a_name_holds_for_peers_alone():
    names = frozenset({"moegate", "waits"})
    reasons = {"moegate": "ended twice", "hangs": "ended twice"}
    case = case_of(ours(), Variant("waits", lambda: 1), Variant("hangs", lambda: 1))
    variants = row_of(case, known=Known(peers_lost=reasons, peers_eager=names))["variants"]
    assert variants["hangs"] == {"ours": False, "trouble": "ended twice"}
    assert (variants["moegate"]["how"], variants["waits"]["how"]) == ("graph", "eager")
