"""The whole way of a layer on a GPU: nothing on it waits for the device, forward, backward or step of decoding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_support import only_on_triton

import moegate
from moegate.balance import controllers, losses
from moegate.ops.library import IMPLEMENTED, implementation

pytestmark = only_on_triton

HIDDEN, WIDTH, EXPERTS = 16, 24, 8
_WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "argwhere", "masked_select"}
"""Operators whose result, or its shape, the host must know: on a GPU it waits for all that was launched before."""
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class WaitsForNothing(TorchDispatchMode):
    """Raises at the first operator that on a GPU would make the host wait, those inside moegate's operators too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        space, name = func.namespace, func.overloadpacket.__name__
        if space == "moegate":
            assert name in IMPLEMENTED, f"{func} has no Triton kernels."
            with self:  # what the operator calls is looked at too
                return implementation(IMPLEMENTED[name])(*args, **(kwargs or {}))
        waits = name in _WAITING or "unique" in name
        if name in _INDEXING:
            waits = any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        if name == "repeat_interleave":  # how many there will be is known, or read
            waits = (kwargs or {}).get("output_size") is None
        assert not waits, f"{func} waits for the device."
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test of operators can't see: Python that reads a tensor, or makes one out of host memory."""

    def refuse(name: str) -> Any:
        def refused(*_: object, **__: object) -> None:
            raise AssertionError(f"{name} waits for the device.")

        return refused

    with monkeypatch.context() as patched, WaitsForNothing():
        for name in ("tolist", "numpy", "item", "__bool__", "__int__", "__float__", "__index__", "cpu"):
            patched.setattr(Tensor, name, refuse(name))
        for name in ("tensor", "as_tensor", "from_numpy"):
            patched.setattr(torch, name, refuse(name))
        yield


def layer(rule: moegate.RoutingRule, **options: Any) -> moegate.MoE:
    return moegate.MoE(HIDDEN, WIDTH, EXPERTS, rule, **options)


LOSSES = (losses.load_balance, losses.router_z, losses.sequence_load_balance)
RULES = {
    "topk": moegate.recipes.topk(2),
    "switch": moegate.recipes.switch(),
    "st_moe": moegate.recipes.st_moe(),
    "deepseek_v3": moegate.recipes.deepseek_v3(2, num_groups=4, groups_kept=2),
    "deepseek_v4": moegate.recipes.deepseek_v4(3),
    "llama4": moegate.recipes.llama4(),
    "noisy_topk": moegate.recipes.noisy_topk(),
    "relu": moegate.recipes.relu(),
}


@pytest.mark.parametrize("name", RULES)
def test_a_step_of_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moe, hidden = layer(RULES[name], num_shared_experts=1), torch.randn(1, 9, HIDDEN, requires_grad=True)
    controller = controllers.SignBias(EXPERTS)
    with nothing_is_read(monkeypatch):
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
    with torch.no_grad(), nothing_is_read(monkeypatch):
        out, routing = moe(hidden)
        _ = routing.load, routing.real_tokens
    assert torch.isfinite(out).all()


CAPACITIES = {
    "weight": moegate.Capacity(1.0, drop="weight"),
    "random": moegate.Capacity(1.0, drop="random"),
    "batch_priority": moegate.Capacity(1.0, drop="batch_priority"),
    "sequence": moegate.Capacity(1.0, scope="sequence"),
    "after": moegate.Capacity(places=2, weigh="after"),
}
"""None reroutes: that goes in passes until nobody asks any more."""


@pytest.mark.parametrize("name", CAPACITIES)
def test_a_capacity_that_drops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moe = layer(RULES["topk"].replace(capacity=CAPACITIES[name]))
    hidden = torch.randn(2, 5, HIDDEN, requires_grad=True)
    with nothing_is_read(monkeypatch):
        moe(hidden)[0].square().sum().backward()
    assert torch.isfinite(hidden.grad).all()
