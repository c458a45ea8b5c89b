"""Controllers do what they are for: a skewed router becomes balanced, without touching a weight."""

from collections.abc import Callable

import pytest
import torch

import moegate
from moegate.balance.controllers import (
    BiasController,
    PIDBias,
    ProportionalBias,
    QuantileBias,
    SignBias,
    SMEBUBias,
)

NUM_EXPERTS, TOP_K, TOKENS = 16, 2, 2048
SIGMOID = moegate.RoutingRule(moegate.selection.TopK(TOP_K), score=moegate.scoring.Sigmoid())
SOFTMAX = moegate.recipes.mixtral(top_k=TOP_K)


def violations(make: Callable[[], BiasController], rule: moegate.RoutingRule, steps: int) -> list[float]:
    """MaxVio of each step, for a router whose logits favour some experts by a fixed offset."""
    generator = torch.Generator().manual_seed(0)
    offset = 1.5 * torch.randn(NUM_EXPERTS, generator=generator)
    controller, bias = make(), torch.zeros(NUM_EXPERTS)
    readings = []
    for _ in range(steps):
        logits = torch.randn(TOKENS, NUM_EXPERTS, generator=generator) + offset
        routing = moegate.route(logits, rule, bias=bias)
        controller.observe(routing)
        controller.update(bias)
        readings.append(moegate.metrics.max_violation(routing))
    return readings


# An even router, with 256 tokens expected per expert, reads about 0.12 by chance.
@pytest.mark.parametrize(
    ("make", "rule", "steps"),
    [
        (lambda: SignBias(NUM_EXPERTS, rate=5e-3), SIGMOID, 200),
        (lambda: ProportionalBias(NUM_EXPERTS, rate=1e-2), SIGMOID, 100),
        (lambda: PIDBias(NUM_EXPERTS, kp=2e-2, ki=1e-2, kd=5e-3), SIGMOID, 100),
        (lambda: SMEBUBias(NUM_EXPERTS, rate=5e-3), SIGMOID, 150),
        (lambda: QuantileBias(NUM_EXPERTS, TOP_K), SIGMOID, 10),
        (lambda: PIDBias(NUM_EXPERTS), SOFTMAX, 400),
        (lambda: SMEBUBias(NUM_EXPERTS, rate=2e-3), SOFTMAX, 250),
        (lambda: QuantileBias(NUM_EXPERTS, TOP_K), SOFTMAX, 10),
    ],
    ids=["sign", "proportional", "pid", "smebu", "quantile", "pid-softmax", "smebu-softmax", "quantile-softmax"],
)
def test_a_skewed_router_becomes_balanced(
    make: Callable[[], BiasController], rule: moegate.RoutingRule, steps: int
) -> None:
    readings = violations(make, rule, steps)
    assert readings[0] > 3.0
    assert sum(readings[-5:]) / 5 < 0.3


def test_without_a_controller_it_stays_skewed() -> None:
    readings = violations(lambda: SignBias(NUM_EXPERTS).eval(), SIGMOID, 10)
    assert min(readings) > 3.0


def test_quantile_needs_ten_steps_where_the_default_sign_rule_has_hardly_moved() -> None:
    quantile = violations(lambda: QuantileBias(NUM_EXPERTS, TOP_K), SIGMOID, 10)
    sign = violations(lambda: SignBias(NUM_EXPERTS), SIGMOID, 10)
    assert quantile[-1] < 0.3
    assert sign[-1] > 2.5


def test_a_step_that_is_large_for_the_scores_oscillates() -> None:
    """Softmax over 16 experts has differences of hundredths: a step of 0.05 overshoots for ever."""
    readings = violations(lambda: SignBias(NUM_EXPERTS, rate=0.05), SOFTMAX, 60)
    assert min(readings[-20:]) > 1.0


def test_selection_follows_the_bias_and_weights_do_not() -> None:
    logits = torch.randn(8, 4)
    bias = torch.tensor([0.0, 0.0, 0.0, 1e3])
    routing = moegate.route(logits, moegate.RoutingRule(moegate.selection.TopK(1)), bias=bias)
    assert (routing.expert_index == 3).all()
    torch.testing.assert_close(routing.weights[:, 0], logits.softmax(-1)[:, 3])
