"""Recipes: each is the router that its name says, and names are found."""

import pytest
import torch

import moegate
from moegate import recipes
from moegate.capacity import Capacity
from moegate.estimators import Relaxed, StraightThrough
from moegate.extra import NullExperts, SharedWeights
from moegate.noise import GumbelNoise, InputJitter, LearnedNoise
from moegate.rule import RoutingRule
from moegate.scoring import Constant, ReLU, Sigmoid, Softmax, SoftmaxSelected, SqrtSoftplus
from moegate.selection import (
    Dense,
    EntropyK,
    ExpertChoice,
    GroupedTopK,
    Hash,
    Random,
    SoftSlots,
    SparseMixer,
    Threshold,
    TopK,
    TopP,
)
from moegate.weighting import Weighting

RENORMALIZED = Weighting(renormalize=True)
PUBLISHED: dict[str, RoutingRule] = {
    "topk": RoutingRule(TopK(2), weighting=RENORMALIZED),
    "switch": RoutingRule(TopK(1), noise=InputJitter(0.01), capacity=Capacity(1.25)),
    "gshard": RoutingRule(TopK(2), weighting=RENORMALIZED, capacity=Capacity(1.25)),
    "noisy_topk": RoutingRule(TopK(2), score=SoftmaxSelected(), noise=LearnedNoise()),
    "mixtral": RoutingRule(TopK(2), weighting=RENORMALIZED),
    "qwen3_moe": RoutingRule(TopK(8), weighting=RENORMALIZED),
    "olmoe": RoutingRule(TopK(8)),
    "st_moe": RoutingRule(TopK(2), weighting=RENORMALIZED, noise=InputJitter(0.01), capacity=Capacity(1.25)),
    "nllb_moe": RoutingRule(
        TopK(2),
        weighting=Weighting(renormalize=True, floor=2.0**-23),
        capacity=Capacity(1.0, places=64, eval_factor=64.0, weigh="after"),
    ),
    "deepseek_v2": RoutingRule(
        GroupedTopK(6, num_groups=8, groups_kept=3, group_score="max"), weighting=Weighting(scale=16.0)
    ),
    "deepseek_v3": RoutingRule(
        GroupedTopK(8, num_groups=8, groups_kept=4, group_score="top2_sum"),
        score=Sigmoid(),
        weighting=Weighting(renormalize=True, scale=2.5),
    ),
    "deepseek_v4": RoutingRule(TopK(6), score=SqrtSoftplus(), weighting=Weighting(renormalize=True, scale=1.5)),
    "gpt_oss": RoutingRule(TopK(4), score=SoftmaxSelected()),
    "phimoe": RoutingRule(SparseMixer(2, 0.01)),
    "zaya": RoutingRule(TopK(1), extra=NullExperts(1)),
    "inkling": RoutingRule(
        TopK(6), score=Sigmoid(), weighting=Weighting(renormalize=True, scale=8.0), extra=SharedWeights(2)
    ),
    "llama4": RoutingRule(TopK(1), score=Sigmoid(), weighting=Weighting(apply_to="input")),
    "expert_choice": RoutingRule(ExpertChoice(2.0, "batch"), score=Softmax()),
    "soft_moe": RoutingRule(SoftSlots(1, "sequence")),
    "dense": RoutingRule(Dense()),
    "hash_routing": RoutingRule(Hash(1, 0), score=Constant(), weighting=RENORMALIZED),
    "random_routing": RoutingRule(Random(2), score=Constant(), weighting=RENORMALIZED),
    "top_p": RoutingRule(TopP(0.6)),
    "entropy_k": RoutingRule(EntropyK((0.5, 1.0), (1, 2, 4))),
    "relu": RoutingRule(Threshold(0.0, min_k=0), score=ReLU()),
    "gumbel_topk": RoutingRule(TopK(2), weighting=RENORMALIZED, noise=GumbelNoise()),
    "straight_through": RoutingRule(TopK(2), weighting=RENORMALIZED, estimator=StraightThrough()),
}


@pytest.mark.parametrize("name", recipes.names())
def test_the_defaults_are_the_published_router(name: str) -> None:
    assert recipes.get(name)() == PUBLISHED[name]


def test_every_router_that_the_library_promises_is_there() -> None:
    promised = {
        "switch",
        "gshard",
        "noisy_topk",
        "mixtral",
        "qwen3_moe",
        "deepseek_v2",
        "deepseek_v3",
        "gpt_oss",
        "llama4",
        "olmoe",
        "st_moe",
        "expert_choice",
        "soft_moe",
        "hash_routing",
        "random_routing",
        "top_p",
        "entropy_k",
        "gumbel_topk",
        "straight_through",
    }
    assert promised <= set(recipes.names()) == set(recipes.__all__) - {"get", "names"}
    assert all(getattr(recipes, name) is recipes.get(name) for name in recipes.names())


def test_settings_reach_their_parts() -> None:
    assert recipes.topk(4, renormalize=False, noise_std=0.5) == RoutingRule(
        TopK(4), noise=moegate.noise.GaussianNoise(0.5)
    )
    assert recipes.switch(capacity_factor=None, jitter=0.0) == RoutingRule(TopK(1))
    assert recipes.st_moe(capacity_factor=2.0, jitter=0.0).capacity == Capacity(2.0)
    assert recipes.gshard(capacity_factor=None).capacity is None
    assert recipes.soft_moe(slots_per_expert=3, scope="batch").selection == SoftSlots(3, "batch")
    assert recipes.hash_routing(2, seed=7).selection == Hash(2, 7)
    assert recipes.top_p(0.4, max_k=3).selection == TopP(0.4, 3)
    assert recipes.entropy_k(0.7, max_k=8).selection == EntropyK((0.7, 1.4), (1, 2, 8))
    assert recipes.relu(0.3).selection == Threshold(0.3, min_k=0)
    assert recipes.gumbel_topk(3, temperature=0.5, relaxed=True).estimator == Relaxed(0.5)
    assert recipes.gumbel_topk(1).weighting == Weighting()
    assert recipes.straight_through(1, temperature=2.0).estimator == StraightThrough(2.0)


@pytest.mark.parametrize("name", recipes.names())
def test_no_default_recipe_trains_without_a_gradient(name: str) -> None:
    """The warning about a lost gradient is an error here."""
    ids, scale = torch.arange(6), torch.ones(6, 256)
    logits = torch.randn(6, 160 if name == "deepseek_v2" else 256, requires_grad=True)
    if name == "phimoe":
        # With logits so far apart, only the best would stay, with a weight of 1.
        logits = (logits.detach() / 100 + 1).requires_grad_()
    rule = recipes.get(name)()
    scale = scale[:, : logits.shape[1]]
    routing = moegate.route(logits, rule, training=True, token_ids=ids, noise_scale=scale)
    if rule.score != Constant():
        (grad,) = torch.autograd.grad(routing.weights[:, 0].square().sum(), logits)
        assert bool(grad.any())


@pytest.mark.parametrize(
    ("name", "message"),
    [("mixtrall", r"Did you mean 'mixtral'\?"), ("deepseekv3", r"Did you mean 'deepseek_v3'\?"), ("zzz", "Known: ")],
)
def test_an_unknown_recipe_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown recipe {name!r}.*{message}"):
        recipes.get(name)
