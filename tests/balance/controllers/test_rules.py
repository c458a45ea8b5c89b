"""Each rule against its formula, in NumPy float64."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import moegate
from moegate.balance.controllers import PIDBias, ProportionalBias, QuantileBias, SignBias, SMEBUBias

RULE = moegate.RoutingRule(moegate.selection.TopK(2), score=moegate.scoring.Sigmoid())
SKEW = torch.tensor([1.5, 0.5, 0.0, -0.5, -1.5])


def batches(count: int, tokens: int = 200) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(tokens, 5, generator=generator) + SKEW


def violations(load: Tensor) -> np.ndarray:
    counts = load.double().numpy()
    return (counts.mean() - counts) / counts.mean()


def test_sign_by_hand() -> None:
    for centre, expected in ((False, [-1.0, 0.0, 1.0, 1.0]), (True, [-1.25, -0.25, 0.75, 0.75])):
        controller = SignBias(4, rate=0.5, centre=centre)
        delta = controller.step(torch.tensor([5, 2, 1, 0]))
        assert delta.tolist() == [0.5 * value for value in expected]


def test_sign_is_the_published_rule_unless_asked_to_centre() -> None:
    """b += γ · sign(n̄ - n): every step is 0 or γ, also where n̄ = 3/4 lies between the counts."""
    bias = torch.zeros(4)
    controller = SignBias(4, rate=1e-3)
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]])
    controller.observe(moegate.route(logits, moegate.recipes.switch(), bias=bias))
    assert controller.load.tolist() == [2, 1, 0, 0]
    controller.update(bias)
    assert torch.equal(bias, torch.tensor([-1e-3, -1e-3, 1e-3, 1e-3]))
    # An expert that has exactly the mean stays where it is.
    assert torch.equal(SignBias(4, rate=1e-3).step(torch.tensor([2, 1, 1, 0])), torch.tensor([-1e-3, 0.0, 0.0, 1e-3]))


def test_sign_compares_exactly_where_floats_would_not() -> None:
    # The mean is 2^25 + 1/4: float32 sees four equal loads, and gives no expert a sign.
    load = torch.tensor([2**25 + 1, 2**25, 2**25, 2**25])
    assert SignBias(4, rate=1.0, centre=False).step(load).tolist() == [-1.0, 1.0, 1.0, 1.0]
    assert not SignBias(3, rate=1.0).step(torch.tensor([7, 7, 7])).any()


def test_proportional() -> None:
    controller, bias = ProportionalBias(5, rate=0.1), torch.zeros(5)
    expected = np.zeros(5)
    for logits in batches(6):
        routing = moegate.route(logits, RULE, bias=bias)
        controller.observe(routing)
        controller.update(bias)
        expected += 0.1 * violations(routing.load)
        np.testing.assert_allclose(bias.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("start", [0.0, 5.0])
@pytest.mark.parametrize("limit", [100.0, 0.05])
def test_pid_is_the_positional_form_on_top_of_the_first_bias(start: float, limit: float) -> None:
    kp, ki, kd = 0.03, 0.02, 0.01
    controller, bias = PIDBias(5, kp=kp, ki=ki, kd=kd, limit=limit), torch.full((5,), start)
    integral, previous = np.zeros(5), None
    for logits in batches(8):
        routing = moegate.route(logits, RULE, bias=bias)
        controller.observe(routing)
        controller.update(bias)
        error = violations(routing.load)
        integral = np.clip(integral + ki * error, -limit, limit)
        slope = np.zeros(5) if previous is None else error - previous
        previous = error
        np.testing.assert_allclose(bias.numpy(), start + kp * error + integral + kd * slope, atol=3e-6)
    assert (np.abs(integral) == limit).any() == (limit < 1)


def test_pid_anti_windup_recovers_at_once() -> None:
    """An expert without tokens for long has its integral at the limit, not at 100 times as much."""
    controller, bias = PIDBias(2, kp=0.0, ki=0.1, kd=0.0, limit=1.0), torch.zeros(2)
    for _ in range(100):
        controller.load.copy_(torch.tensor([10, 0]))
        controller.update(bias)
    assert bias.tolist() == pytest.approx([-1.0, 1.0])
    for _ in range(20):
        controller.load.copy_(torch.tensor([0, 10]))
        controller.update(bias)
    assert bias.tolist() == pytest.approx([1.0, -1.0], abs=1e-5)


def test_smebu() -> None:
    controller, bias = SMEBUBias(5, rate=0.1, momentum=0.3, kappa=2.0), torch.zeros(5)
    momentum, expected = np.zeros(5), np.zeros(5)
    for logits in batches(6):
        routing = moegate.route(logits, RULE, bias=bias)
        controller.observe(routing)
        controller.update(bias)
        delta = 0.1 * np.tanh(2.0 * violations(routing.load))
        momentum = 0.3 * momentum + 0.7 * (delta - delta.mean())
        expected += momentum
        np.testing.assert_allclose(bias.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("score", [moegate.scoring.Sigmoid(), moegate.scoring.Softmax()])
@pytest.mark.parametrize("rate", [1.0, 0.25])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_quantile(score: moegate.scoring.Score, rate: float, top_k: int) -> None:
    """Against the published formula on the scores, up to the width of a bin."""
    rule = moegate.RoutingRule(moegate.selection.TopK(top_k), score=score)
    num_bins = 4000
    controller = QuantileBias(5, top_k, rate=rate, num_bins=num_bins)
    bias = torch.tensor([0.1, -0.05, 0.0, 0.05, -0.1])
    (logits,) = batches(1, tokens=2000)
    routing = moegate.route(logits, rule, bias=bias)
    scores = routing.scores.double().numpy()
    before = bias.double().numpy()
    threshold = np.sort(scores + before, axis=1)[:, -(top_k + 1)][:, None]
    target = np.quantile(threshold - scores, top_k / 5, axis=0)
    shift = target - before
    expected = before + rate * (shift - shift.mean())
    controller.observe(routing)
    controller.update(bias)
    np.testing.assert_allclose(bias.numpy(), expected, atol=2 * 2.0 / num_bins)


@pytest.mark.parametrize("score", [moegate.scoring.Sigmoid(), moegate.scoring.Softmax()])
@pytest.mark.parametrize("top_k", [1, 2])
def test_quantile_of_a_routing_without_a_bias_is_that_of_a_bias_of_zero(
    score: moegate.scoring.Score, top_k: int
) -> None:
    """Without a bias the selection may order by logits, but a bias is added to scores."""
    rule = moegate.RoutingRule(moegate.selection.TopK(top_k), score=score, rank_by="logits")
    (logits,) = batches(1)
    biases = []
    for given in (None, torch.zeros(5)):
        controller, bias = QuantileBias(5, top_k), torch.zeros(5)
        controller.observe(moegate.route(logits, rule, bias=given))
        controller.update(bias)
        biases.append(bias)
    assert biases[1].any()
    torch.testing.assert_close(*biases, rtol=0, atol=0)


def test_quantile_survives_broken_rows_and_excluded_experts() -> None:
    (logits,) = batches(1)
    clean, broken = (QuantileBias(5, 2), torch.zeros(5)), (QuantileBias(5, 2), torch.zeros(5))
    bad = torch.cat([logits, torch.full((3, 5), float("nan"))])
    for (controller, bias), rows in ((clean, logits), (broken, bad)):
        controller.observe(moegate.route(rows, RULE, bias=bias))
        controller.update(bias)
    torch.testing.assert_close(broken[1], clean[1], rtol=0, atol=0)
    for rows in (torch.full((4, 5), float("nan")), logits.masked_fill(torch.arange(5) > 1, float("-inf"))):
        controller, bias = QuantileBias(5, 2), torch.zeros(5)
        controller.observe(moegate.route(rows, RULE, bias=bias))
        controller.update(bias)
        assert torch.isfinite(bias).all()
