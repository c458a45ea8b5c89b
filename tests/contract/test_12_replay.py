"""Routing replay: given experts take the place of the selection and of nothing else."""

from typing import Any

import oracle
import pytest
import torch
from routers import NUM_EXPERTS, ROW_WISE, routed
from triton_support import not_on_triton

import moegate
from moegate.rule import RoutingRule

looks_at_numbers = not_on_triton("on a GPU no number is looked at")

# The relaxed estimator has no chosen experts in training.
RULES = {
    name: rule for name, rule in ROW_WISE.items() if not isinstance(rule.estimator, moegate.estimators.Relaxed)
} | {"expert_choice": moegate.recipes.expert_choice()}
# What a null class takes of a sum is not on record.
RULES |= {
    name: rule.replace(weighting=moegate.Weighting()) for name, rule in RULES.items() if name.startswith("null experts")
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def distinct_experts(tokens: int, k: int) -> torch.Tensor:
    return torch.rand(tokens, NUM_EXPERTS).argsort(dim=-1)[:, :k]


@every_rule
@pytest.mark.parametrize("training", [False, True])
def test_the_rules_own_choice_gives_its_own_routing(rule: RoutingRule, training: bool) -> None:
    logits = torch.randn(2, 20, NUM_EXPERTS, requires_grad=True)
    mask = torch.rand(2, 20) > 0.2
    bias = torch.linspace(-0.1, 0.1, NUM_EXPERTS)
    inputs: dict[str, Any] = {"training": training, "generator": 5, "token_mask": mask, "bias": bias}
    expected = routed(logits, rule, **inputs)
    ours = routed(logits, rule, expert_index=expected.expert_index, **inputs)
    assert ours.expert_index.equal(expected.expert_index) and ours.selected_index.equal(expected.expert_index)
    torch.testing.assert_close(ours.weights, expected.weights, rtol=1e-6, atol=1e-30)
    assert ours.noisy_logits is None or ours.noisy_logits.equal(expected.noisy_logits)
    if expected.weights.requires_grad:
        salt = torch.randn(expected.weights.shape)
        grads = [torch.autograd.grad((each.weights * salt).sum(), logits)[0] for each in (ours, expected)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "softmax_selected", "sigmoid", "sqrt_softplus", "identity", "relu"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_any_experts_are_weighed_from_the_live_logits(kind: str, renormalize: bool) -> None:
    logits, index = torch.randn(30, NUM_EXPERTS) + 1.0, distinct_experts(30, 4)
    index[::3, 2] = -1
    weighting = moegate.Weighting(renormalize=renormalize, eps=1e-6, scale=2.5)
    rule = RoutingRule(moegate.selection.TopK(4), score=moegate.scoring.SCORES[kind](), weighting=weighting)
    expert_scale = torch.rand(NUM_EXPERTS)
    routing = moegate.route(logits, rule, expert_index=index.to(torch.int8), expert_scale=expert_scale)
    wide, empty = logits.double(), index < 0
    scores = torch.from_numpy(oracle.SCORES["softmax" if kind == "softmax_selected" else kind](wide.numpy()))
    raw = scores.gather(1, index.clamp(min=0)).masked_fill(empty, 0.0)
    if kind == "softmax_selected" or renormalize:
        raw = raw / (raw.sum(dim=-1, keepdim=True) + (1e-6 if renormalize and kind != "softmax_selected" else 0.0))
    if kind == "softmax_selected" and renormalize:
        raw = raw / (1.0 + 1e-6)
    expected = raw * 2.5 * expert_scale.double()[index.clamp(min=0)]
    torch.testing.assert_close(routing.weights.double(), expected, rtol=2e-6, atol=1e-12)
    assert routing.expert_index.equal(index) and routing.load.sum().item() == int((~empty).sum())


def test_a_nan_logit_shows_and_a_masked_token_gets_nothing() -> None:
    logits, index = torch.randn(3, NUM_EXPERTS), distinct_experts(3, 2)
    logits[1, int((set(range(NUM_EXPERTS)) - set(index[1].tolist())).pop())] = float("nan")
    routing = moegate.route(
        logits, moegate.recipes.deepseek_v4(2), expert_index=index, token_mask=torch.tensor([True, True, False])
    )
    assert routing.expert_index.tolist() == [*index[:2].tolist(), [-1, -1]]
    assert routing.weights[1].isnan().all() and routing.weights[2].tolist() == [0.0, 0.0]
    assert routing.weights[0].isfinite().all() and routing.load.sum().item() == 4


def test_a_capacity_does_not_drop_what_was_recorded_after_it() -> None:
    rule = moegate.recipes.switch(capacity_factor=1.0)
    recorded = moegate.route(torch.randn(64, NUM_EXPERTS), rule)
    assert (recorded.expert_index < 0).any()
    assert moegate.route(torch.randn(64, NUM_EXPERTS), rule, expert_index=recorded.expert_index).expert_index.equal(
        recorded.expert_index
    )


@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_shapes(shape: tuple[int, ...]) -> None:
    routing = moegate.route(
        torch.randn(*shape, NUM_EXPERTS),
        moegate.recipes.mixtral(),
        expert_index=torch.tensor([3, 1]).expand(*shape, 2),
    )
    assert routing.batch_shape == shape and routing.expert_index.shape == routing.weights.shape
    assert routing.expert_index.tolist() == ([[3, 1]] if shape == () else [])


def test_a_layer_replays_another_layers_experts() -> None:
    rule = moegate.recipes.deepseek_v4(2)
    moe, hidden = moegate.MoE(8, 16, NUM_EXPERTS, rule), torch.randn(2, 5, 8, requires_grad=True)
    index = distinct_experts(10, 2)
    out, routing = moe(hidden, expert_index=index.view(2, 5, 2))
    assert routing.expert_index.equal(index)
    rows = torch.zeros(10, 8)
    weights = torch.nn.functional.softplus(hidden.view(10, 8) @ moe.gate.weight.T).sqrt().gather(1, index)
    weights = weights / weights.sum(dim=-1, keepdim=True) * 1.5
    for token in range(10):
        for slot in range(2):
            offsets = (torch.arange(NUM_EXPERTS) >= index[token, slot]).long()
            rows[token] += weights[token, slot] * moe.experts(hidden.view(10, 8)[token : token + 1], offsets)[0]
    torch.testing.assert_close(out.view(10, 8), rows, rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(out.sum(), moe.gate.weight)[0].abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(moe(hidden, expert_index=index)[0], out.detach())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        pytest.param(torch.full((4, 2), 16), "names experts from 16 to 16, but there are 16", marks=looks_at_numbers),
        pytest.param(torch.full((4, 2), -2), "from -2", marks=looks_at_numbers),
        pytest.param(torch.full((4, 2), 3), r"gives token 0 an expert twice, \[3, 3\]", marks=looks_at_numbers),
        (torch.zeros(3, 2, dtype=torch.int64), r"\[4, K\].*got the shape \(3, 2\)"),
        (torch.zeros(4, 2), "integer tensor"),
        (torch.zeros(4, 2, dtype=torch.bool), "integer tensor"),
        (torch.tensor(0), "got the shape"),
        ([[0, 1]] * 4, "got list"),
    ],
)
def test_what_is_no_record_is_refused(index: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        moegate.route(torch.randn(4, NUM_EXPERTS), moegate.recipes.mixtral(), expert_index=index)


def test_where_given_experts_have_no_meaning() -> None:
    logits, index = torch.randn(4, NUM_EXPERTS), distinct_experts(4, 2)
    with pytest.raises(ValueError, match="no meaning for soft routing"):
        moegate.route(logits, moegate.recipes.soft_moe(), expert_index=index)
    relaxed = moegate.recipes.gumbel_topk(2, relaxed=True)
    with pytest.raises(ValueError, match="no meaning for the relaxed estimator"):
        moegate.route(logits, relaxed, expert_index=index, training=True)
    assert moegate.route(logits, relaxed, expert_index=index).expert_index.equal(index)
