"""No rule makes Python wait for a GPU, unless its results have a shape that depends on numbers.

Triton's interpreter stands for the GPU: with it, ``may_look`` answers as it would there.
"""

from typing import Any, NamedTuple

import pytest
import torch
from no_waiting import Waits, nothing_waits
from torch import Tensor
from triton_support import ON_TRITON, only_on_triton

import moegate
from moegate import recipes
from moegate.capacity import Capacity
from moegate.noise import LearnedNoise
from moegate.ops.synchronization import may_look
from moegate.routing import Routing
from moegate.rule import RoutingRule

# Infinities and NaN are the interpreter's daily bread.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
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
    if type(rule.noise) is LearnedNoise:
        options["noise_scale"] = torch.ones_like(inputs.logits)
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


@only_on_triton
@pytest.mark.parametrize("drop", ["position", "weight", "random", "batch_priority"])
@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_capacities(drop: str, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = recipes.mixtral().replace(capacity=Capacity(1.0, drop=drop, scope=scope))
    inputs = Inputs.of(rule, masked=True)
    with nothing_waits(monkeypatch):
        read(routed(rule, inputs, training=True))


@only_on_triton
def test_other_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias, a scale, a table of experts, and recorded ones: their numbers are checked on the CPU alone."""
    biased, by_table = recipes.deepseek_v3(2, num_groups=4, groups_kept=2), recipes.hash_routing()
    inputs = Inputs.of(biased, masked=True)
    table, recorded = torch.arange(12)[:, None] % EXPERTS, torch.tensor([0, -1]).expand(2, 6, 2)
    bias, scale = torch.zeros(EXPERTS), torch.ones(EXPERTS, requires_grad=True)
    with nothing_waits(monkeypatch):
        read(routed(biased, inputs, training=True, bias=bias, expert_scale=scale))
        read(routed(biased, inputs, training=True, bias=bias, expert_index=recorded))
        read(routed(by_table, inputs, training=False, hash_table=table))


@only_on_triton
def test_more_experts_than_a_tile_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 9000, requires_grad=True)
    with nothing_waits(monkeypatch):
        moegate.route(logits, recipes.mixtral()).weights.sum().backward()


@pytest.mark.parametrize(
    "read_numbers",
    [
        *(Tensor.item, Tensor.nonzero, Tensor.unique, lambda x: x[x > 0]),
        *(lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x.cpu()),
    ],
)
def test_the_net_holds(read_numbers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(1)
    with pytest.raises(Waits), nothing_waits(monkeypatch):
        read_numbers(one)


def test_where_numbers_may_be_looked_at() -> None:
    assert may_look(torch.ones(1)) is not ON_TRITON
    assert not may_look(torch.ones(1, device="meta"))
    seen: list[bool] = []
    torch.vmap(lambda row: (seen.append(may_look(row)), row)[1])(torch.ones(2, 3))
    assert seen == [False]
