import itertools
import math

import pytest

from moegate.lab.training.schedule import learning_rate_at


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (20, 10)])
def test_the_rate_warms_up_and_then_follows_a_cosine(warmup: int, total: int) -> None:
    for step in range(total):
        rate = learning_rate_at(step, peak=2.0, warmup_steps=warmup, total_steps=total)
        if step < warmup:
            expected = 2.0 * (step + 1) / warmup
        else:
            half_turn = math.cos(math.pi * (step - warmup) / (total - warmup))
            expected = 0.2 + 1.8 * (half_turn + 1) / 2
        assert rate == pytest.approx(expected, rel=1e-12)


def test_the_rate_never_jumps_where_the_warm_up_ends() -> None:
    rates = [learning_rate_at(step, peak=1.0, warmup_steps=50, total_steps=1000) for step in range(1000)]
    assert max(rates) == 1.0
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= 1 / 50 + 1e-12
