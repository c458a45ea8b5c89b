"""Which rules the fused gate serves, and that a fused routing is the composed one."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import moegate
from moegate import routing as routing_module
from moegate.capacity import Capacity
from moegate.estimators import Relaxed, StraightThrough
from moegate.fusion import Composed, Fused, match, operator_of
from moegate.noise import GaussianNoise
from moegate.scoring import Constant, Identity, ReLU, Score, Sigmoid, Softmax, SoftmaxSelected, SqrtSoftplus
from moegate.selection import GroupedTopK, TopK
from moegate.weighting import Weighting

FUSED_IN_EVALUATION = {
    *("topk", "switch", "gshard", "noisy_topk", "mixtral", "qwen3_moe", "olmoe", "st_moe", "deepseek_v2"),
    *("deepseek_v3", "deepseek_v4", "gpt_oss", "zaya", "llama4", "gumbel_topk", "straight_through"),
}
FUSED_IN_TRAINING = FUSED_IN_EVALUATION - {"straight_through"}


@pytest.mark.parametrize("name", moegate.recipes.names())
def test_which_recipes_are_fused(name: str) -> None:
    rule = moegate.recipes.get(name)()
    for training, fused in ((False, FUSED_IN_EVALUATION), (True, FUSED_IN_TRAINING)):
        assert isinstance(match(rule, training), Fused) == (name in fused)
        assert operator_of(rule, training) == match(rule, training)


@dataclass(frozen=True, repr=False)
class Squared(Score):
    kind: ClassVar[str] = "squared"
    monotone: ClassVar[bool] = False

    def scores(self, logits_TE: Tensor) -> Tensor:
        return logits_TE.square()


@dataclass(frozen=True, repr=False)
class OwnTopK(TopK):
    kind: ClassVar[str] = "own_top_k"


COMPOSED = [
    (moegate.RoutingRule(OwnTopK(1)), False, "OwnTopK has no kernel"),
    (moegate.RoutingRule(TopK(1), score=Squared()), False, "Squared scores have no kernel"),
    (moegate.RoutingRule(TopK(1), score=Constant()), False, "Constant scores have no kernel"),
    (moegate.RoutingRule(capacity=Capacity(overflow="reroute")), False, "a capacity that reroutes weighs its"),
    (moegate.RoutingRule(capacity=Capacity(weigh="after")), False, "a capacity that weighs after dropping"),
    (moegate.RoutingRule(score=Sigmoid(), rank_by="biased_logits"), False, "the kernel adds the bias to scores"),
    (
        moegate.RoutingRule(weighting=Weighting(renormalize=True, order=2.0)),
        False,
        "the kernel divides by the plain sum",
    ),
    (
        moegate.RoutingRule(weighting=Weighting(renormalize=True, floor=1e-12)),
        False,
        "the kernel divides by the plain sum",
    ),
    (moegate.recipes.inkling(), False, "the kernel weighs no shared experts"),
    (moegate.RoutingRule(estimator=StraightThrough()), True, "StraightThrough estimates a gradient"),
    (moegate.RoutingRule(estimator=Relaxed()), True, "Relaxed estimates a gradient"),
]


@pytest.mark.parametrize(("rule", "training", "reason"), COMPOSED)
def test_why_a_rule_is_composed(rule: moegate.RoutingRule, training: bool, reason: str) -> None:
    answer = match(rule, training)
    assert isinstance(answer, Composed)
    assert answer.reason.startswith(reason)


def test_the_arguments_are_those_of_the_rule() -> None:
    rule = moegate.RoutingRule(
        GroupedTopK(6, num_groups=4, groups_kept=2, group_score="max"),
        score=SqrtSoftplus(),
        weighting=Weighting(renormalize=True, eps=1e-6, scale=2.5),
        rank_by="scores",
    )
    assert match(rule) == Fused(6, "sqrt_softplus", 4, 2, "max", True, 1e-6, 2.5, "scores")
    assert match(moegate.RoutingRule(TopK(3), noise=GaussianNoise(0.1)), training=True) == Fused(
        3, "softmax", 1, 1, "max", False, 1e-20, 1.0, "logits"
    )


RULES = [
    moegate.RoutingRule(selection, score=score, weighting=weighting, rank_by=rank_by)
    for selection in (TopK(3), GroupedTopK(3, 4, 2, "max"), GroupedTopK(3, 4, 2, "top2_sum"))
    for score in (Softmax(), SoftmaxSelected(), Sigmoid(), SqrtSoftplus(), Identity(), ReLU())
    for weighting in (Weighting(), Weighting(renormalize=True, eps=1e-3, scale=2.5))
    for rank_by in ("logits", "scores")
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_routing_is_the_composed_one(
    rule: moegate.RoutingRule, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = (torch.randn(3, 7, 12) * 2).to(dtype)
    logits[0, 1] = 0.5
    logits[1, 2, 3:] = float("-inf")
    mask = torch.rand(3, 7) < 0.8
    bias = torch.randn(12) * 0.1
    scale = torch.rand(12, requires_grad=True)
    probe = torch.randn(21, 3)
    results = []
    for composed in (False, True):
        if composed:
            monkeypatch.setattr(routing_module, "operator_of", lambda rule, training: Composed("asked for"))
        leaf = logits.clone().requires_grad_()
        scale.grad = None
        for given in (None, bias):
            routing = moegate.route(leaf, rule, bias=given, token_mask=mask, expert_scale=scale)
            (routing.weights * probe).sum().backward()
            results.append((routing, leaf.grad, scale.grad))
    half = len(results) // 2
    for (fused, *fused_grads), (composed, *grads) in zip(results[:half], results[half:], strict=True):
        assert fused.expert_index.equal(composed.expert_index)
        torch.testing.assert_close(fused.weights, composed.weights, rtol=2e-6, atol=1e-7, equal_nan=True)
        for name in ("logits", "scores", "selection_scores", "ranking", "probabilities", "load"):
            torch.testing.assert_close(getattr(fused, name), getattr(composed, name), rtol=0, atol=0, equal_nan=True)
        tolerance = {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
        for fused_grad, grad in zip(fused_grads, grads, strict=True):
            torch.testing.assert_close(fused_grad, grad, equal_nan=True, **tolerance)
