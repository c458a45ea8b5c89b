"""The oracles against brute force and against deliberately wrong answers: each mistake is named."""

import pytest
import torch

from moegate.bench.oracles.closeness import compare
from moegate.bench.oracles.gate import Chosen, GateOracle, GateRule, gate_gradient, gradient_verdict
from moegate.bench.oracles.mixture import MixtureOracle, Weights
from moegate.bench.oracles.plan import Places, PlanOracle
from moegate.bench.oracles.topk import TopKOracle

RULES = [
    (GateRule("softmax", top_k=3), False),
    (GateRule("softmax", top_k=3, renormalize=False), False),
    (GateRule("sigmoid", top_k=3, biased=True), True),
    (GateRule("sqrt_softplus", top_k=2, biased=True), True),
    (GateRule("sigmoid", top_k=3, biased=True, num_groups=4, groups_kept=2), True),
    (GateRule("sigmoid", top_k=8), False),
]


def brute_force(row, bias, rule):
    """The experts and weights of one token, by lists."""
    z = row.double()
    score = {"softmax": z.softmax(0), "sigmoid": z.sigmoid(), "sqrt_softplus": z.exp().log1p().sqrt()}[rule.score]
    rank = (score + (0 if bias is None else bias.double())).tolist()
    size = len(rank) // rule.num_groups
    groups = [sorted(rank[g * size : (g + 1) * size])[-2:] for g in range(rule.num_groups)]
    kept = sorted(range(rule.num_groups), key=lambda g: -sum(groups[g]))[: rule.groups_kept]
    allowed = [e for e in range(len(rank)) if e // size in kept]
    chosen = sorted(allowed, key=lambda e: -rank[e])[: rule.top_k]
    weights = score[chosen]
    return chosen, (weights / (weights.sum() + rule.eps) if rule.renormalize else weights).tolist()


def problem(rule, biased):
    logits, bias = torch.randn(40, 8), torch.randn(8) if biased else None
    rows = [brute_force(row, bias, rule) for row in logits]
    chosen = Chosen(torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]))
    return GateOracle(logits, bias, rule), chosen


@pytest.mark.parametrize(("rule", "biased"), RULES)
def test_a_right_gate_is_right_in_any_order_and_type(rule, biased):
    oracle, chosen = problem(rule, biased)
    assert oracle.verdict(chosen) is None
    assert oracle.verdict(Chosen(chosen.index_TK.flip(1).int(), chosen.weights_TK.flip(1).float())) is None


@pytest.mark.parametrize(("rule", "biased"), [entry for entry in RULES if entry[0].top_k < 8])
def test_every_mistake_of_a_gate_is_named(rule, biased):
    oracle, (index, weights) = problem(rule, biased)
    other = index.clone()
    other[5, 0] = next(e for e in range(8) if e not in index[5].tolist())
    assert "chose other experts for 1 of 40 tokens" in oracle.verdict(Chosen(other, weights))
    double = index.clone()
    double[5, 0] = double[5, 1]
    assert oracle.verdict(Chosen(double, weights)) == "a token has the same expert twice"
    outside = index.clone()
    outside[5, 0] = 8
    assert oracle.verdict(Chosen(outside, weights)) == "an index is no expert"
    outside[5, 0] = -1
    assert oracle.verdict(Chosen(outside, weights)) == "an index is no expert"
    scaled = weights.clone()
    scaled[5, 0] *= 1.001
    assert oracle.verdict(Chosen(index, scaled)) == "a weight is off by 1.0e-03 of itself"
    scaled[5, 0] = float("nan")
    assert oracle.verdict(Chosen(index, scaled)) is not None
    assert "shape" in oracle.verdict(Chosen(index[:, :1], weights[:, :1]))
    assert "shape" in oracle.verdict(Chosen(index, weights[:, :1]))


def test_a_tie_may_be_broken_either_way_and_a_clear_choice_may_not():
    oracle = GateOracle(torch.tensor([[1.0, 1.0, 0.0]]), None, GateRule("softmax", top_k=1))
    one = torch.ones(1, 1)
    assert oracle.verdict(Chosen(torch.tensor([[0]]), one)) is None
    assert oracle.verdict(Chosen(torch.tensor([[1]]), one)) is None
    assert "behind the right one" in oracle.verdict(Chosen(torch.tensor([[2]]), one))


def test_a_tie_of_groups_may_be_broken_either_way():
    logits = torch.tensor([[2.0, 1.0, 2.0, 1.0, 0.0, 0.0]])
    oracle = GateOracle(logits, None, GateRule("sigmoid", top_k=1, num_groups=3, groups_kept=1))
    one = torch.ones(1, 1)
    assert [oracle.verdict(Chosen(torch.tensor([[e]]), one)) is None for e in (0, 2)] == [True, True]


def test_small_probabilities_are_no_ties():
    logits = torch.arange(4096.0)[None] / 4096
    oracle = GateOracle(logits, None, GateRule("softmax", top_k=1))
    assert oracle.verdict(Chosen(torch.tensor([[4094]]), torch.ones(1, 1))) is not None


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_the_gradient_is_that_of_differences(score, renormalize):
    rule = GateRule(score, top_k=3, renormalize=renormalize)
    logits, index, grad = torch.randn(4, 6).double(), torch.tensor([[0, 2, 5]] * 4), torch.randn(4, 3).double()
    found = gate_gradient(logits, index, grad, rule)

    def loss(at):
        weights = GateOracle(at, None, rule).weights(index)
        return float((weights * grad).sum())

    step = 1e-6
    for token in range(4):
        for expert in range(6):
            moved = torch.zeros(4, 6).double()
            moved[token, expert] = step
            difference = (loss(logits + moved) - loss(logits - moved)) / (2 * step)
            assert float(found[token, expert]) == pytest.approx(difference, abs=1e-8)
    assert gradient_verdict(found.float(), found) is None
    assert "a gradient is off" in gradient_verdict(found.float() * 1.001, found)


def test_unknown_scores_are_refused():
    with pytest.raises(ValueError, match="no score 'tanh'"):
        GateOracle(torch.zeros(1, 2), None, GateRule("tanh", top_k=1))
    with pytest.raises(ValueError, match="no gradient of 'sqrt_softplus'"):
        gate_gradient(torch.zeros(1, 2), torch.zeros(1, 1), torch.ones(1, 1), GateRule("sqrt_softplus", top_k=1))


def test_the_k_greatest():
    values = torch.tensor([[1.0, 3.0, 3.0, 2.0], [4.0, 0.0, 1.0, 2.0]])
    oracle = TopKOracle(values, 2)
    assert oracle.verdict(torch.tensor([[1, 2], [0, 3]])) is None
    assert oracle.verdict(torch.tensor([[2, 1], [0, 3]])) is None
    assert oracle.verdict(torch.tensor([[1, 1], [0, 3]])) == "a row has the same place twice"
    assert oracle.verdict(torch.tensor([[1, 2], [3, 0]])) == "a value is 2 where 4 belongs"
    assert "shape" in oracle.verdict(torch.tensor([[1], [0]]))


def test_a_plan_is_judged_number_by_number():
    index = torch.randint(0, 5, (30, 3))
    order = sorted(range(90), key=lambda slot: (int(index.reshape(-1)[slot]), slot))
    counts = torch.tensor([int((index == e).sum()) for e in range(5)])
    inverse = torch.empty(90, dtype=torch.int64)
    inverse[order] = torch.arange(90)
    right = Places(counts, counts.cumsum(0), torch.tensor(order), inverse.view(30, 3))
    oracle = PlanOracle(index, 5)
    assert oracle.places_verdict(right) is None
    for name in Places._fields:
        changed = getattr(right, name).clone()
        changed.view(-1)[1] += 1
        assert oracle.places_verdict(right._replace(**{name: changed})).startswith(f"{name} differs at 1 of")
        assert "elements instead of" in oracle.places_verdict(right._replace(**{name: changed.view(-1)[1:]}))


def test_rows_and_sums_of_a_plan():
    index, hidden, weights = torch.tensor([[1, 0], [0, 1]]), torch.randn(2, 3), torch.rand(2, 2)
    oracle = PlanOracle(index, 2)
    rows = torch.stack([hidden[0], hidden[1], hidden[0], hidden[1]])
    assert oracle.rows_verdict(rows, hidden) is None
    assert oracle.rows_verdict(rows.roll(1, 0), hidden) == "a row is not its token's"
    # Sorted rows: slot 1 of token 0, slot 0 of token 1, slot 0 of token 0, slot 1 of token 1.
    sums = torch.stack(
        [
            weights[0, 0] * rows[2] + weights[0, 1] * rows[0],
            weights[1, 0] * rows[1] + weights[1, 1] * rows[3],
        ]
    )
    assert oracle.sums_verdict(sums, rows, weights) is None
    assert "an output is off" in oracle.sums_verdict(sums * 1.001, rows, weights)


def layer(num_tokens=6, hidden=8, intermediate=5, num_experts=4):
    weights = Weights(
        torch.randn(num_experts, hidden),
        torch.randn(num_experts, 2 * intermediate, hidden) / 3,
        torch.randn(num_experts, hidden, intermediate) / 3,
    )
    return torch.randn(num_tokens, hidden), weights


def by_tokens(hidden, weights, top_k):
    """The layer token by token, on a graph."""
    rows = []
    for token in hidden:
        chosen, experts = (weights.gate @ token).softmax(0).topk(top_k)
        out = 0
        for share, expert in zip(chosen / chosen.sum(), experts.tolist(), strict=True):
            gate, up = (weights.gate_up[expert] @ token).chunk(2)
            out = out + share * (weights.down[expert] @ (gate * gate.sigmoid() * up))
        rows.append(out)
    return torch.stack(rows)


def test_the_output_of_a_layer():
    hidden, weights = layer()
    oracle = MixtureOracle(hidden, weights, top_k=2, dtype=torch.float32)
    out = by_tokens(hidden, weights, 2)
    assert oracle.output_verdict(out) is None
    assert "an output is off" in oracle.output_verdict(out * 1.001)
    assert "an output is off" in oracle.output_verdict(out.roll(1, 0))


def test_the_gradients_of_a_layer():
    hidden, weights = layer()
    leaves = [part.clone().requires_grad_() for part in (hidden, weights.gate, weights.gate_up, weights.down)]
    out = by_tokens(leaves[0], Weights(*leaves[1:]), 2)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    oracle = MixtureOracle(hidden, weights, top_k=2, dtype=torch.float32)
    assert oracle.gradient_verdict(found, grad) is None
    for place, name in enumerate(("hidden states", "gate", "gate_up_proj", "down_proj")):
        wrong = [part.clone() for part in found]
        wrong[place] *= 1.001
        assert f"a gradient of {name} is off" in oracle.gradient_verdict(tuple(wrong), grad)


def test_closeness_sees_shapes_and_nan():
    right = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert compare("x", torch.tensor([1.0, 2.0]), right, torch.float32) is None
    assert compare("x", torch.tensor([1.0, float("nan")]), right, torch.float32) is not None
    assert compare("x", torch.tensor([1.0, float("inf")]), right, torch.float32) is not None
    assert "shape (1,) instead of (2,)" in compare("x", torch.tensor([1.0]), right, torch.float32)
    assert compare("x", torch.empty(0, 3), torch.zeros(0, 3), torch.float32) is None
    assert compare("x", torch.tensor([1.0, 2.01]), right, torch.bfloat16) is None
    assert compare("x", torch.tensor([1.0, 2.01]), right, torch.float32) is not None
