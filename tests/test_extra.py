"""Null classes and shared experts' weights, against the routers of ZAYA and Inkling in transformers and by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import moegate
from moegate.dispatch import METHODS
from moegate.extra import EXTRAS, Extra, NullExperts, SharedWeights
from moegate.recipes import inkling, zaya
from moegate.rule import RoutingRule
from moegate.selection import TopK, TopP

HIDDEN = 16


def zaya_router(**config: Any) -> nn.Module:
    from transformers import ZayaConfig
    from transformers.models.zaya.modeling_zaya import ZayaRouter

    router: nn.Module = ZayaRouter(ZayaConfig(hidden_size=HIDDEN, router_hidden_size=8, num_experts=6, **config), 0)
    nn.init.normal_(router.router_mlp.out_proj.weight)
    return router


def inkling_block(module: str) -> nn.Module:
    from transformers import InklingTextConfig
    from transformers.models.inkling import modeling_inkling

    config = InklingTextConfig(
        hidden_size=HIDDEN, moe_intermediate_size=12, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3
    )
    block: nn.Module = getattr(modeling_inkling, module)(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


@pytest.mark.parametrize("training", [False, True])
def test_zaya(training: bool) -> None:
    router = zaya_router().train(training)
    router.balancing_biases[:] = torch.rand(7) * 0.1
    hidden = torch.randn(3, 20, HIDDEN)
    logits, weights, index, _ = router(hidden)
    routing = moegate.route(logits, zaya(), bias=router.balancing_biases, training=training)
    null = logits.softmax(dim=-1).add(router.balancing_biases).argmax(dim=-1) == 6
    assert 0 < int(null.sum()) < 60
    assert routing.expert_index[:, 0].equal(index[:, 0].masked_fill(null, -1))
    torch.testing.assert_close(routing.weights, weights, rtol=1e-6, atol=0)
    assert routing.num_experts == 6 and routing.load.sum().item() == 60 - int(null.sum())
    assert routing.load.equal(torch.bincount(index[~null, 0], minlength=6))
    grads = [torch.autograd.grad(each.square().sum(), router.down_proj.weight, retain_graph=True)[0]
             for each in (routing.weights, weights)]  # fmt: skip
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("training", [False, True])
def test_inkling(training: bool) -> None:
    gate = inkling_block("InklingTopkRouter").train(training)
    gate.e_score_correction_bias[:] = torch.randn(8) * 0.1
    hidden = torch.randn(40, HIDDEN) * 2
    _, weights, index, gammas = gate(hidden)
    routing = moegate.route(
        hidden @ gate.weight.T,
        inkling(3, num_shared=2, scale=gate.route_scale),
        bias=gate.e_score_correction_bias,
        expert_scale=gate.global_scale.expand(10),
        training=training,
    )
    order, theirs = routing.expert_index.argsort(dim=-1), index.argsort(dim=-1)
    assert routing.expert_index.gather(1, order).equal(index.gather(1, theirs))
    torch.testing.assert_close(routing.weights.gather(1, order), weights.gather(1, theirs), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(routing.shared_weights, gammas, rtol=1e-6, atol=1e-7)
    assert routing.scores.shape == (40, 8)
    salt = torch.randn(40, 2)
    grads = [
        torch.autograd.grad(each.square().sum() + (shared * salt).sum(), [gate.weight, gate.global_scale])
        for each, shared in ((routing.weights, routing.shared_weights), (weights, gammas))
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_inkling(method: str) -> None:
    block = inkling_block("InklingMoE").eval()
    scale = block.gate.route_scale
    rule = inkling(3, num_shared=2, scale=float(scale * block.gate.global_scale.detach().abs()))
    nn.init.constant_(block.gate.global_scale, float(block.gate.global_scale.detach().abs()))
    ours = moegate.MoE(HIDDEN, 12, 8, rule, num_shared_experts=2, correction_bias=True, dispatch=method).eval()
    state, shared = block.state_dict(), "shared_experts."
    state = {name.replace("gate.global_scale", ""): value for name, value in state.items()}
    state.pop("")
    for name in ("gate_proj", "up_proj"):
        state[f"{shared}{name}.weight"] = state.pop(shared + name).flatten(0, 1)
    state[f"{shared}down_proj.weight"] = state.pop(f"{shared}down_proj").transpose(0, 1).flatten(1)
    state["experts.gate_up_proj"] = block.experts.gate_up_proj.detach()
    ours.load_state_dict(state)
    hidden = torch.randn(2, 9, HIDDEN)
    with torch.no_grad():
        torch.testing.assert_close(ours(hidden)[0], block(hidden), rtol=1e-4, atol=1e-4)


def test_a_null_class_takes_its_share_of_the_sum() -> None:
    rule = RoutingRule(TopK(2), weighting=moegate.Weighting(renormalize=True), extra=NullExperts(2))
    routing = moegate.route(torch.tensor([[0.0, math.log(3.0), -9.0, math.log(5.0), -9.0]]), rule)
    assert routing.expert_index.tolist() == [[-1, 1]] and routing.selected_index.tolist() == [[-1, 1]]
    torch.testing.assert_close(routing.weights, torch.tensor([[0.0, 3 / 8]]))
    assert routing.num_experts == 3 and routing.load.tolist() == routing.selected_load.tolist() == [0, 1, 0]
    assert routing.logits.shape == routing.ranking.shape == routing.probabilities.shape == (1, 3)
    torch.testing.assert_close(routing.probabilities.sum(), torch.tensor(1.0))
    assert moegate.metrics.drop_rate(routing) == 0.0 and moegate.metrics.experts_per_token(routing) == 1.0


def test_losses_and_metrics_see_the_experts_alone() -> None:
    """The null class takes half of all choices, and among the experts all is even: that is perfect balance."""
    logits = torch.eye(5).repeat(8, 1) * 10.0
    logits = torch.cat([logits, torch.eye(5)[-1:].repeat(32, 1) * 10.0])
    routing = moegate.route(logits, RoutingRule(TopK(1), extra=NullExperts(1)))
    assert routing.load.tolist() == [8] * 4
    assert moegate.balance.losses.load_balance(routing).item() == pytest.approx(1.0, abs=1e-4)
    assert moegate.metrics.max_violation(routing) == 0.0
    assert set(moegate.metrics.summary(routing)) and moegate.metrics.token_entropy(routing) > 0
    controller = moegate.balance.controllers.SignBias(4, rate=0.1)
    bias = torch.zeros(5)
    controller.observe(routing)
    controller.update(bias[:4])
    assert bias.tolist() == [0.0] * 5


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_with_null_classes_gives_their_tokens_nothing(method: str) -> None:
    moe = moegate.MoE(8, 16, num_experts=4, rule=zaya(), correction_bias=True, dispatch=method).eval()
    assert moe.gate.weight.shape == (5, 8) and moe.gate.e_score_correction_bias.shape == (5,)
    hidden = torch.randn(30, 8, requires_grad=True)
    out, routing = moe(hidden)
    null = routing.expert_index[:, 0] < 0
    assert 0 < int(null.sum()) < 30
    assert not out[null].any() and bool(out[~null].any(dim=-1).all())
    with torch.no_grad():
        torch.testing.assert_close(moe(hidden)[0], out.detach(), rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(out.sum(), moe.gate.weight)[0].isfinite().all()


def test_capacity_and_masks_and_scales_count_the_experts_alone() -> None:
    logits = torch.zeros(12, 3)
    logits[:8, 2] = 5.0
    rule = RoutingRule(TopK(1), extra=NullExperts(1), capacity=moegate.Capacity(1.0))
    routing = moegate.route(logits, rule)
    # Four assignments to two experts have room for two each.
    assert routing.expert_index.flatten().tolist() == [-1] * 8 + [0, 0, -1, -1]
    assert routing.selected_load.tolist() == [4, 0]
    scaled = moegate.route(logits, rule, expert_scale=torch.tensor([2.0, 3.0]), token_mask=torch.arange(12) != 8)
    assert scaled.load.tolist() == [2, 0] and scaled.weights[9].item() == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one value per expert"):
        moegate.route(logits, rule, expert_scale=torch.ones(3))


def test_shared_logits_are_never_selected_and_nan_shows() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0], [0.0, 1.0, float("nan")], [0.0, 1.0, 2.0]])
    rule = RoutingRule(TopK(2), score=moegate.scoring.SoftmaxSelected(), extra=SharedWeights(1))
    routing = moegate.route(logits, rule, token_mask=torch.tensor([True, True, False]))
    assert routing.expert_index.tolist() == [[1, 0], [1, 0], [-1, -1]]
    torch.testing.assert_close(routing.shared_weights[0], logits[0].softmax(dim=0)[2:])
    torch.testing.assert_close(routing.weights[0], logits[0].softmax(dim=0)[[1, 0]])
    assert routing.weights[1].isnan().all() and routing.shared_weights[1].isnan().all()
    assert routing.weights[2].tolist() == [0.0, 0.0] and routing.shared_weights[2].tolist() == [0.0]
    assert routing.detach().shared_weights is not None and not routing.to("cpu").shared_weights.requires_grad
    replayed = moegate.route(logits, rule, expert_index=torch.tensor([[0, -1]] * 3))
    torch.testing.assert_close(replayed.shared_weights[0, 0], logits[0, [0, 2]].softmax(dim=0)[1])


@pytest.mark.parametrize("extra", [NullExperts(3), SharedWeights(2)])
def test_an_extra_travels_as_json(extra: Extra) -> None:
    rule = RoutingRule(TopP(0.5), extra=extra)
    assert RoutingRule.from_json(rule.to_json()) == rule and f"extra={extra!r}" in repr(rule)
    assert EXTRAS[extra.kind] is type(extra)
    assert rule.num_experts(rule.num_logits(7)) == 7


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"selection": moegate.selection.SoftSlots()}, "has no use for"),
        ({"selection": moegate.selection.ExpertChoice()}, "has no use for"),
        ({"capacity": moegate.Capacity(overflow="reroute")}, "does not go with a capacity that reroutes"),
        ({"estimator": moegate.estimators.StraightThrough()}, "weighs by the score alone"),
        ({"selection": moegate.selection.SparseMixer()}, "weights of its own"),
    ],
)
def test_what_does_not_go_with_shared_weights(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingRule(**parts, extra=SharedWeights(1))


def test_bounds() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        NullExperts(0)
    with pytest.raises(ValueError, match="2 logits are too few"):
        moegate.route(torch.zeros(1, 2), RoutingRule(TopK(1), extra=NullExperts(2)))
    with pytest.raises(ValueError, match="weighs 2 shared experts, but num_shared_experts=1"):
        moegate.MoE(8, 16, 4, inkling(2), num_shared_experts=1)
    assert moegate.route(torch.zeros(1, 3), RoutingRule(TopK(3), extra=NullExperts(2))).expert_index.tolist() == [
        [0, -1, -1]
    ]
