"""Weighting: eps, scale, a factor per expert, and weights on the input. To the bit in tests/contract (rule 7)."""

import pytest
import torch

import moegate
from moegate.rule import RoutingRule
from moegate.selection import TopK
from moegate.weighting import Weighting


def test_renormalised_weights_sum_to_the_scale() -> None:
    logits = torch.randn(50, 16)
    for scale in (1.0, 2.5):
        rule = RoutingRule(TopK(4), score=moegate.scoring.Sigmoid(), weighting=Weighting(renormalize=True, scale=scale))
        torch.testing.assert_close(moegate.route(logits, rule).weights.sum(dim=1), torch.full((50,), scale))


def test_eps_shrinks_small_sums() -> None:
    chosen = torch.tensor([[3e-6, 1e-6]])
    torch.testing.assert_close(Weighting(renormalize=True, eps=4e-6).weigh(chosen), torch.tensor([[0.375, 0.125]]))
    torch.testing.assert_close(Weighting(renormalize=True).weigh(chosen), torch.tensor([[0.75, 0.25]]))


def test_a_row_without_weight_stays_at_zero() -> None:
    assert Weighting(renormalize=True, scale=2.0).weigh(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("renormalize", [False, True])
def test_a_factor_per_expert_comes_last(renormalize: bool) -> None:
    logits, factors = torch.randn(20, 6), torch.rand(6, requires_grad=True)
    rule = RoutingRule(TopK(2), weighting=Weighting(renormalize=renormalize, scale=2.0))
    plain = moegate.route(logits, rule)
    scaled = moegate.route(logits, rule, expert_scale=factors)
    assert scaled.weights.equal(plain.weights * factors[plain.expert_index])
    (grad,) = torch.autograd.grad(scaled.weights.sum(), factors)
    expected = torch.zeros(6).index_add(0, plain.expert_index.flatten(), plain.weights.flatten())
    torch.testing.assert_close(grad, expected)


def test_a_weight_on_the_input_is_not_one_on_the_output() -> None:
    """Llama 4 multiplies what the expert receives: for a non-linear expert another function."""
    layers = {
        side: moegate.MoE(8, 16, 4, RoutingRule(TopK(2), weighting=Weighting(apply_to=side)))
        for side in ("input", "output")
    }
    layers["output"].load_state_dict(layers["input"].state_dict())
    hidden = torch.randn(5, 8)
    out, routing = layers["input"](hidden)
    experts = layers["input"].experts
    expected = torch.zeros(5, 8)
    for token in range(5):
        for expert, weight in zip(routing.expert_index[token], routing.weights[token], strict=True):
            gate, up = (experts.gate_up_proj[expert] @ (weight * hidden[token])).chunk(2)
            expected[token] += experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(out, layers["output"](hidden)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale must be"),
        ({"scale": "2"}, TypeError, "scale must be a number"),
        ({"eps": -1e-6}, ValueError, "eps must not be negative"),
        ({"eps": float("nan")}, ValueError, "eps must be a finite number"),
        ({"eps": "small"}, TypeError, "eps must be a number"),
        ({"apply_to": "outputs"}, ValueError, r"Did you mean 'output'\?"),
    ],
)
def test_bad_values(values: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Weighting(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factors", "error"),
    [(torch.ones(5), ValueError), (torch.ones(4, dtype=torch.int64), TypeError), ([1.0] * 4, TypeError)],
)
def test_factors_that_do_not_fit(factors: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="expert_scale must"):
        moegate.route(torch.randn(2, 4), moegate.recipes.mixtral(), expert_scale=factors)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 3.0])
def test_the_order_of_the_norm(order: float) -> None:
    chosen = torch.rand(20, 4, requires_grad=True)
    weights = Weighting(renormalize=True, order=order).weigh(chosen)
    torch.testing.assert_close(weights, chosen / chosen.pow(order).sum(dim=1, keepdim=True).pow(1 / order))
    torch.testing.assert_close(weights.pow(order).sum(dim=1), torch.ones(20), rtol=1e-5, atol=0)


def test_what_is_divided_by_has_a_floor() -> None:
    chosen = torch.tensor([[0.03, 0.01], [0.0, 0.0], [0.6, 0.2]])
    weights = Weighting(renormalize=True, floor=0.1).weigh(chosen)
    torch.testing.assert_close(weights, torch.tensor([[0.3, 0.1], [0.0, 0.0], [0.75, 0.25]]))
    assert Weighting(renormalize=True, floor=0.1).weigh(torch.full((1, 2), float("nan"))).isnan().all()
    routing = moegate.route(chosen, RoutingRule(score=moegate.scoring.Identity(), weighting=Weighting(True, floor=0.1)))
    torch.testing.assert_close(routing.weights, weights)


@pytest.mark.parametrize("order", [2.0, 3.0])
def test_a_row_without_weight_has_a_finite_gradient(order: float) -> None:
    chosen = torch.zeros(2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(Weighting(renormalize=True, order=order, floor=1e-7).weigh(chosen).sum(), chosen)
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"order": 0.0}, "order must be"),
        ({"order": float("inf")}, "order must be"),
        ({"floor": -1.0}, "floor must not"),
    ],
)
def test_what_is_no_norm_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weighting(renormalize=True, **values)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax_selected", "sqrt_softplus"])
def test_the_bias_may_be_added_to_the_logits(kind: str) -> None:
    logits, bias = torch.randn(40, 8), torch.randn(8)
    rule = RoutingRule(TopK(3), score=moegate.scoring.SCORES[kind](), rank_by="biased_logits")
    routing = moegate.route(logits, rule, bias=bias)
    assert routing.expert_index.equal((logits + bias).topk(3).indices)
    assert routing.ranking.equal(logits + bias)
    plain = moegate.route(logits, rule.replace(rank_by="logits"), expert_index=routing.expert_index)
    torch.testing.assert_close(routing.weights, plain.weights)
    unbiased = moegate.route(logits, rule)
    assert unbiased.expert_index.equal(logits.topk(3).indices)
