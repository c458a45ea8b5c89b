"""Times on a card: how often calls are repeated in a graph, what waits is timed eagerly, contenders take turns."""

import pytest

from moegate.bench.gpu.card import Waits
from moegate.bench.gpu.limits import CardLimits, measure_limits
from moegate.bench.gpu.rehearsal import Rehearsal
from moegate.bench.gpu.timing import EAGER, IN_A_GRAPH, Effort, Run, interleaved, prepared, wake


class Clock(Rehearsal):
    """A card on which each call takes a given time; keeps what ran."""

    def __init__(self, us=10.0, waits=False):
        self.us, self.waits, self.log, self.captured = us, waits, [], []

    def check_waits(self, call):
        call()
        if self.waits:
            raise Waits("it copies a number back")

    def capture(self, calls):
        self.captured.append(len(calls))
        return super().capture(calls)

    def microseconds(self, runs):
        found = []
        for run in runs:
            before = len(self.log)
            run()
            found.append(self.us * (len(self.log) - before))
        return found


@pytest.mark.parametrize(("us", "calls"), [(10.0, 30), (1.0, 64), (400.0, 1), (150.0, 2)])
def test_a_graph_is_long_enough_and_not_too_long(us, calls):
    card = Clock(us)
    run = prepared(card, [lambda: card.log.append("a")], Effort(graph_us=300, most_calls=64))
    assert (run.how, run.calls) == (IN_A_GRAPH, calls)
    timing = interleaved(card, {"a": run}, Effort(seconds=0.0, rounds=(5, 60)))["a"]
    assert timing.median_us == pytest.approx(us)
    assert timing.rounds == 5


def test_copies_are_repeated_as_a_whole():
    card = Clock(10.0)
    calls = [lambda name=name: card.log.append(name) for name in "abc"]
    run = prepared(card, calls, Effort(graph_us=300, most_calls=10))
    assert run.calls == 9
    card.log.clear()
    run.start()
    assert "".join(card.log) == "abcabcabc"


def test_what_waits_is_timed_eagerly_and_says_why():
    card = Clock(waits=True)
    run = prepared(card, [lambda: card.log.append("a")] * 2, Effort())
    assert (run.how, run.calls, run.note, card.captured) == (EAGER, 2, "it copies a number back", [])


def test_a_reason_keeps_a_call_out_of_graphs():
    card = Clock()
    assert prepared(card, [lambda: None], Effort(), eager="its capture failed").note == "its capture failed"
    assert card.captured == []


def test_contenders_take_turns_and_the_order_alternates():
    card = Clock(1e6)
    runs = {name: Run(lambda name=name: card.log.append(name), 1, IN_A_GRAPH) for name in "ab"}
    found = interleaved(card, runs, Effort(seconds=4.0, rounds=(2, 60)))
    assert "".join(card.log)[2:] == "abbaabba"
    assert found["a"].rounds == 4


def test_the_rehearsal_measures_limits_without_a_card():
    limits = measure_limits(Rehearsal())
    assert limits.copy > 0
    assert limits.read > 0
    assert set(limits.operations) == {"bfloat16", "float32"}
    wake(Rehearsal(), Effort(wake_seconds=0.001))


def test_floors_count_bytes_at_the_rate_of_a_copy():
    from moegate.bench.cases import Work

    limits = CardLimits(copy=3e12, read=4e12, operations={"float32": 5e13, "bfloat16": 8e14}, smallest_us=1.0)
    assert limits.as_limits().floor(Work(num_bytes=3_000_000)).us == pytest.approx(1.0)
    assert limits.as_limits().floor(Work(num_bytes=3, operations=8 * 10**8, dtype="bfloat16")).bound == "operations"
