"""The whole way of a layer on a GPU: nothing on it waits for the device, forward, backward or step of decoding."""

from typing import Any

import pytest
import torch
from no_waiting import nothing_waits
from triton_support import only_on_triton

import moegate
from moegate.balance import controllers, losses

# Infinities and NaN are the interpreter's daily bread.
pytestmark = [only_on_triton, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")]

HIDDEN, WIDTH, EXPERTS = 16, 24, 8


def layer(rule: moegate.RoutingRule, **options: Any) -> moegate.MoE:
    return moegate.MoE(HIDDEN, WIDTH, EXPERTS, rule, **options)


LOSSES = (losses.load_balance, losses.router_z, losses.sequence_load_balance)
RULES = {
    "topk": moegate.recipes.topk(2),
    "switch": moegate.recipes.switch(),
    "deepseek_v3": moegate.recipes.deepseek_v3(2, num_groups=4, groups_kept=2),
    "llama4": moegate.recipes.llama4(),
    "noisy_topk": moegate.recipes.noisy_topk(),
}


@pytest.mark.parametrize("name", RULES)
def test_a_step_of_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moe, hidden = layer(RULES[name], num_shared_experts=1), torch.randn(1, 9, HIDDEN, requires_grad=True)
    controller = controllers.SignBias(EXPERTS)
    with nothing_waits(monkeypatch):
        out, routing = moe(hidden)
        balance = [function(routing) for function in LOSSES]
        (out.square().sum() + sum(balance)).backward()
        controller.observe(routing)
    assert torch.isfinite(hidden.grad).all()
    assert all(torch.isfinite(weight.grad).all() for weight in moe.parameters())


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("name", ["topk", "deepseek_v3", "llama4"])
def test_a_step_of_decoding(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    moe, hidden = layer(RULES[name]).eval(), torch.randn(tokens, HIDDEN)
    with torch.no_grad(), nothing_waits(monkeypatch):
        out, routing = moe(hidden)
        _ = routing.load, routing.real_tokens
    assert torch.isfinite(out).all()


CAPACITIES = {
    "weight": moegate.Capacity(1.0, drop="weight"),
    "sequence": moegate.Capacity(1.0, scope="sequence"),
    "after": moegate.Capacity(places=2, weigh="after"),
}
"""None reroutes: that goes in passes until nobody asks any more."""


@pytest.mark.parametrize("name", CAPACITIES)
def test_a_capacity_that_drops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moe = layer(RULES["topk"].replace(capacity=CAPACITIES[name]))
    hidden = torch.randn(2, 5, HIDDEN, requires_grad=True)
    with nothing_waits(monkeypatch):
        moe(hidden)[0].square().sum().backward()
    assert torch.isfinite(hidden.grad).all()
