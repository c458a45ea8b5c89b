"""The process of a suite: it skips what is done, stops when the time is over, and keeps every row at once."""

import time

import pytest

from moegate.bench.cases import Case, Entry, Variant
from moegate.bench.gpu import suite_process as module
from moegate.bench.gpu.measuring import Spoiled
from moegate.bench.gpu.notebook import Notebook
from moegate.bench.gpu.rehearsal import Rehearsal
from moegate.bench.gpu.suite_process import GO_ON, SuiteRun


def case(name):
    if name == "broken":
        raise MemoryError("too large")
    return Case(name, {"T": 1}, "nothing", (Variant("moegate", lambda: 1, ours=True),), lambda result: None)


@pytest.fixture
def run(tmp_path, monkeypatch):
    def use(names=("a", "b"), suite="gate", until=None, only=(), card=None):
        entries = [Entry(name, lambda name=name: case(name)) for name in names]
        monkeypatch.setattr(module, "entries", lambda suite, place, tiny: entries)
        notebook, said = Notebook(tmp_path, "now"), []
        end = time.monotonic() + 60 if until is None else until
        SuiteRun(card or Rehearsal(), notebook, suite, until=end, only=only).run(said.append)
        return notebook.rows(), said

    return use


def keys(rows, what="variants"):
    return [row["key"] for row in rows if what in row]


def test_each_case_is_kept_with_where_and_when(run):
    rows, said = run()
    assert keys(rows) == ["a", "b"]
    assert keys(rows, "limits") == ["limits"]
    assert {"commit", "versions", "machine", "card", "time", "suite", "sitting"} <= rows[-1].keys()
    assert rows[-1]["rehearsal"] is True
    assert said[0].startswith("a\n  moegate")


def test_a_second_process_measures_the_rest(run):
    run(("a",))
    rows, _ = run(("a", "b"))
    assert keys(rows) == ["a", "b"]


def test_when_the_time_is_over_the_rest_is_named(run):
    rows, said = run(until=0.0)
    assert keys(rows, "skipped") == ["a", "b"]
    assert said == [f"skipped, the time is over: gate {name}" for name in "ab"]
    assert keys(rows, "limits") == []


def test_only_the_wanted_cases(run):
    assert keys(run(("long", "short"), only=("gate sho",))[0]) == ["short"]


def test_a_case_that_can_not_be_built_is_said_and_costs_no_other(run):
    rows, said = run(("broken", "b"))
    assert keys(rows, "failed") == ["broken"]
    assert keys(rows) == ["b"]
    assert said[0] == "broken: not measured: MemoryError: too large"


def test_a_case_in_which_a_process_ended_with_nobody_to_blame_is_not_tried_again(run, tmp_path):
    notebook = Notebook(tmp_path, "now")
    notebook.turn("gate", "a", "", "timing")
    notebook.blame("ended after 120 s at a: timing")
    rows, said = run()
    assert [row["failed"] for row in rows if "failed" in row] == ["ended after 120 s at a: timing"]
    assert keys(rows) == ["b"]
    assert said[0] == "a: not measured: ended after 120 s at a: timing"


class Lost(Rehearsal):
    """A card that answers no more."""

    def wait(self):
        raise RuntimeError("the launch timed out")


def test_a_case_that_takes_the_card_with_it_ends_the_process(run):
    with pytest.raises(Spoiled, match="too large"):
        run(("broken",), card=Lost())


def test_checks_are_kept_with_their_verdicts(run, monkeypatch):
    def failing(card):
        raise ValueError("no")

    checks = {"good": lambda card: None, "bad": lambda card: "two bits differ", "fails": failing}
    monkeypatch.setattr(module, "CHECKS", checks)
    rows, said = run(suite="checks")
    assert [row["verdict"] for row in rows] == [None, "two bits differ", "failed: ValueError: no"]
    assert said[1].startswith("check bad: WRONG: two bits differ")
    assert keys(run(suite="checks")[0], "verdict") == ["good", "bad", "fails"]  # not once more


def test_a_check_that_hung_before_is_wrong(run, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CHECKS", {"hangs": lambda card: None})
    notebook = Notebook(tmp_path, "now")
    notebook.turn("checks", "hangs", "hangs", "check")
    notebook.blame("ended after 120 s")
    assert run(suite="checks")[0][-1]["verdict"] == "ended after 120 s"


def test_the_exit_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "entries", lambda suite, place, tiny: [Entry("a", lambda: case("a"))])
    arguments = [str(tmp_path), "now", "gate", "rehearsal", "60", ""]
    assert module.main(arguments) == 0
    assert "a\n" in capsys.readouterr().out

    def spoiled(self, say):
        raise Spoiled("an illegal memory access")

    monkeypatch.setattr(SuiteRun, "run", spoiled)
    assert module.main(arguments) == GO_ON
    assert "can't go on: an illegal memory access" in capsys.readouterr().out
