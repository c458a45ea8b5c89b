"""The rules with extra classes, draws and places of their own are one graph under a compiler."""

import pytest
import torch
from torch import Tensor

import moegate
from moegate import recipes
from moegate.rule import RoutingRule
from moegate.selection import TopK

RULES = {
    "phimoe": recipes.phimoe(),
    "zaya": recipes.zaya(),
    "inkling": recipes.inkling(2),
    "places of its own": RoutingRule(TopK(2), capacity=moegate.Capacity(places=2, scope="sequence", weigh="after")),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("replayed", [False, True])
def test_one_graph_gives_what_eager_gives(rule: RoutingRule, replayed: bool) -> None:
    logits = torch.randn(2, 6, 16)
    given = torch.rand(2, 6, 13).argsort(dim=-1)[..., :2] if replayed else None

    def routed(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        routing = moegate.route(logits, rule, training=True, expert_index=given)
        return routing.expert_index, routing.weights, routing.load

    torch._dynamo.reset()
    torch.manual_seed(0)
    expected = routed(logits)
    torch.manual_seed(0)
    found = torch.compile(routed, backend="eager", fullgraph=True)(logits)
    assert found[0].equal(expected[0]) and found[2].equal(expected[2])
    torch.testing.assert_close(found[1], expected[1])
