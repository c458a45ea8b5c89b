"""The second expert at random, against the router of NLLB-MoE in transformers and against its shares."""

from typing import Any

import pytest
import torch
from torch import Tensor

import moegate
from moegate.selection import SecondChoice

# float32's machine epsilon, by which NLLB-MoE divides at least.
NLLB_WEIGHTING = moegate.Weighting(renormalize=True, eps=0.0, floor=torch.finfo(torch.float32).eps)


def nllb(logits: Tensor, training: bool, places: int | None, **settings: Any) -> tuple[Tensor, Tensor]:
    """``(first [T, E] one-hot, weights [T, E])`` of transformers' own router."""
    from transformers import NllbMoeConfig
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router

    router = NllbMoeTop2Router(NllbMoeConfig(d_model=8, num_experts=logits.shape[1], **settings)).train(training)
    router.expert_capacity = places
    torch.manual_seed(4)
    first, weights = router.route_tokens(logits.clone())
    return first, weights


def dense_weights(routing: moegate.Routing) -> Tensor:
    weights_TE = torch.zeros(routing.num_tokens, routing.num_experts + 1)
    index = torch.where(routing.expert_index < 0, routing.num_experts, routing.expert_index)
    return weights_TE.scatter(1, index, routing.weights)[:, :-1]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(("places", "fraction"), [(5, 0.2), (3, 1.0), (None, 0.0)])
def test_the_capacity_of_nllb(
    training: bool, prioritized: bool, before: bool, places: int | None, fraction: float
) -> None:
    logits = torch.randn(45, 8) * 2
    first, weights = nllb(
        logits,
        training,
        places,
        second_expert_policy="all",
        batch_prioritized_routing=prioritized,
        normalize_router_prob_before_dropping=before,
        moe_eval_capacity_token_fraction=fraction,
    )
    limit = moegate.Capacity(
        1.0,
        multiple_of=2 if places is None else 1,
        places=places,
        eval_factor=fraction * 8 / 2 or None,
        drop="batch_priority" if prioritized else "position",
        weigh="before" if before else "after",
    )
    rule = moegate.RoutingRule(moegate.selection.TopK(2), weighting=NLLB_WEIGHTING, capacity=limit)
    routing = moegate.route(logits, rule, training=training)
    torch.testing.assert_close(dense_weights(routing), weights, rtol=2e-6, atol=1e-7)
    kept_first = torch.nn.functional.one_hot(routing.expert_index[:, 0].clamp(min=0), 8)
    assert (kept_first * (routing.expert_index[:, :1] >= 0)).equal(first)
    if places is not None and (training or fraction == 0.2):
        assert int((routing.expert_index < 0).sum()) > 0
    if fraction == 0.0:
        return
    assert (
        moegate.recipes.nllb_moe(places=places, num_experts=8, eval_fraction=fraction).replace(
            weighting=NLLB_WEIGHTING, capacity=limit
        )
        == rule
    )


@pytest.mark.parametrize("policy", ["random", "sampling"])
def test_draws_as_nllb_does(policy: str) -> None:
    logits = torch.randn(200, 8)
    _, weights = nllb(logits, True, 1000, second_expert_policy=policy)
    torch.manual_seed(4)  # as before its draws
    rule = moegate.RoutingRule(SecondChoice(policy), weighting=NLLB_WEIGHTING)
    routing = moegate.route(logits, rule, training=True)
    torch.testing.assert_close(dense_weights(routing), weights, rtol=2e-6, atol=1e-7)
    assert moegate.route(logits, rule).expert_index.equal(logits.topk(2).indices)


def test_the_shares_of_both_policies() -> None:
    logits = torch.tensor([0.7, 0.15, 0.1, 0.05]).log().expand(20000, 4)
    random = moegate.route(logits, moegate.RoutingRule(SecondChoice("random")), training=True, generator=0)
    assert abs((random.expert_index[:, 1] == 1).double().mean().item() - 0.3) < 0.015
    assert set(random.expert_index[:, 1].tolist()) == {1, -1} and bool((random.expert_index[:, 0] == 0).all())
    sampled = moegate.route(logits, moegate.RoutingRule(SecondChoice("sampling")), training=True, generator=0)
    shares = torch.bincount(sampled.expert_index[:, 1], minlength=4) / 20000
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.5, 1 / 3, 1 / 6]), atol=0.015, rtol=0)


def test_bounds() -> None:
    with pytest.raises(ValueError, match="Did you mean 'random'"):
        SecondChoice("randon")
    with pytest.raises(ValueError, match="exceeds the 1 experts"):
        moegate.route(torch.randn(2, 1), moegate.RoutingRule(SecondChoice()))
