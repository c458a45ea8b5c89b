"""No rule makes Python wait for a GPU, unless its results have a shape that depends on numbers.

Triton's interpreter stands for the GPU: with it, ``may_look`` answers as it would there.
"""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import moegate
from moegate import recipes
from moegate.capacity import Capacity
from moegate.ops.synchronization import may_look
from moegate.routing import Routing
from moegate.rule import RoutingRule

from .no_waiting import Waits, nothing_waits
from .ops.triton_support import not_on_triton, only_on_triton

# Each token has as many slots as the token with the most experts.
OF_UNKNOWN_SHAPE = {"expert_choice"}
EXPERTS = 16


class Inputs(NamedTuple):
    logits: Tensor
    mask: Tensor | None
    token_ids: Tensor

    @classmethod
    def of(cls, rule: RoutingRule, *, masked: bool) -> "Inputs":
        num_logits = rule.num_logits(EXPERTS)
        mask = torch.ones(2, 6, dtype=torch.bool)
        mask[1, 4:] = False
        return cls(
            torch.randn(2, 6, num_logits, requires_grad=True), mask if masked else None, torch.arange(12).view(2, 6)
        )


def routed(rule: RoutingRule, inputs: Inputs, training: bool, **options: Any) -> Routing:
    routing = moegate.route(
        inputs.logits, rule, token_mask=inputs.mask, training=training, token_ids=inputs.token_ids, **options
    )
    if routing.weights.requires_grad:
        routing.weights.square().sum().backward()
    return routing


def read(routing: Routing) -> None:
    """All that losses, balancers and metrics look at."""
    _ = routing.load, routing.selected_load, routing.real_tokens, routing.probabilities
    _ = routing.logits, routing.ranking, routing.selection_scores, routing.detach()


@only_on_triton
@pytest.mark.filterwarnings("ignore:.*gets no gradient:UserWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", recipes.names())
def test_recipes(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = recipes.get(name)()
    inputs = Inputs.of(rule, masked=training)
    if name in OF_UNKNOWN_SHAPE:
        with pytest.raises(Waits), nothing_waits(monkeypatch):
            routed(rule, inputs, training)
        return
    with nothing_waits(monkeypatch):
        read(routed(rule, inputs, training))
