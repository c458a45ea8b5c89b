"""Rounds alternate, short calls repeat, slow ones get fewer rounds, and the numbers are those of the clock."""

import gc
from itertools import pairwise

import pytest

from moegate.bench import timing
from moegate.bench.timing import Effort, interleaved, takes_part


class Clock:
    """A clock that only the calls move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def call(self, seconds, log=None, name=""):
        def run():
            self.now += seconds
            if log is not None:
                log.append(name)

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_rounds_alternate_and_reverse_their_order(clock):
    log = []
    calls = {name: clock.call(1.0, log, name) for name in "abc"}
    interleaved(calls, Effort(rounds=4, round_seconds=1.0, variant_seconds=100.0))
    assert "".join(log[-12:]) == "abc" + "cba" + "abc" + "cba"


def test_a_short_call_is_repeated_until_a_round_is_full(clock):
    log = []
    found = interleaved({"short": clock.call(0.001, log, "s")}, Effort(rounds=3, round_seconds=0.01))
    assert len(log) == 1 + 2 + 3 * 10
    assert found["short"].min_us == pytest.approx(1000)


def test_a_slow_call_gets_fewer_rounds_but_three(clock):
    effort = Effort(rounds=21, round_seconds=0.01, variant_seconds=0.65)
    found = interleaved({"fast": clock.call(0.001), "slow": clock.call(0.1), "slower": clock.call(5.0)}, effort)
    assert {name: timing.rounds for name, timing in found.items()} == {"fast": 21, "slow": 6, "slower": 3}


@pytest.mark.parametrize("own", [1, 3, 7, 20, 21])
def test_fewer_rounds_are_spread_over_all(own):
    places = [number for number in range(21) if takes_part(number, own, 21)]
    assert len(places) == own
    gaps = [after - before for before, after in pairwise(places)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_minimum_and_median_are_of_the_rounds(clock):
    # One call to warm up, two to estimate, then one a round.
    durations = iter([9.0, 1.0, 1.0, 5.0, 2.0, 3.0, 100.0, 4.0])

    def call():
        clock.now += next(durations)

    found = interleaved({"a": call}, Effort(rounds=5, round_seconds=1.0, variant_seconds=100.0))["a"]
    assert found.min_us == pytest.approx(2e6)
    assert found.median_us == pytest.approx(4e6)


def test_garbage_is_not_collected_between_and_is_afterwards(clock):
    seen = []
    interleaved({"a": lambda: seen.append(gc.isenabled())}, Effort(rounds=3, round_seconds=1e-6))
    assert seen[-1] is False
    assert gc.isenabled()


def test_garbage_is_collected_again_after_an_interruption():
    calls = iter(range(4))

    def stop_in_the_rounds():
        if next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleaved({"a": stop_in_the_rounds}, Effort(rounds=3, round_seconds=1e-6))
    assert gc.isenabled()


def test_nothing_to_time():
    assert interleaved({}, Effort()) == {}
