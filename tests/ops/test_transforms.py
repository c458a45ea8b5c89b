"""``torch.func`` and forward-mode derivatives of a routing and of a layer, against those in float64."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch.autograd import forward_ad

import moegate
from moegate.ops.topk_gate import topk_gate
from moegate.recipes import deepseek_v3, mixtral, olmoe

# PyTorch's own, when forward-mode derivatives are loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

RULES = [mixtral(), olmoe(3), deepseek_v3(3, num_groups=2, groups_kept=1)]


def weights_under(rule: moegate.RoutingRule) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda logits: moegate.route(logits, rule).weights


def close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_tangent_is_not_lost(rule: moegate.RoutingRule) -> None:
    logits, tangent = torch.randn(5, 8), torch.randn(5, 8)
    weights = weights_under(rule)
    exact_jacobian = torch.autograd.functional.jacobian(weights, logits.double())
    exact = (exact_jacobian * tangent.double()).sum(dim=(-2, -1))
    assert exact.abs().max() > 1e-3
    close(torch.func.jvp(weights, (logits,), (tangent,))[1], exact)
    close(torch.func.jacfwd(weights)(logits), exact_jacobian)
    close(torch.func.jacrev(weights)(logits), exact_jacobian)
    with forward_ad.dual_level():
        dual = weights(forward_ad.make_dual(logits, tangent))
        close(forward_ad.unpack_dual(dual).tangent, exact)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_each_sample(rule: moegate.RoutingRule) -> None:
    logits = torch.randn(3, 5, 8)
    each = torch.vmap(torch.func.grad(lambda sample: weights_under(rule)(sample).square().sum()))(logits)
    leaf = logits.double().requires_grad_()
    sum(weights_under(rule)(sample).square().sum() for sample in leaf).backward()
    close(each, leaf.grad)


@pytest.mark.parametrize("rule", RULES)
def test_a_mapped_routing_is_that_of_each_sample(rule: moegate.RoutingRule) -> None:
    logits = torch.randn(3, 5, 8)
    torch.testing.assert_close(
        torch.vmap(weights_under(rule))(logits), torch.stack([weights_under(rule)(sample) for sample in logits])
    )


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_a_layer(activation: str) -> None:
    layer = moegate.MoE(8, 6, 5, olmoe(2), activation=activation)
    exact_layer = copy.deepcopy(layer).double()
    hidden, tangent = torch.randn(7, 8), torch.randn(7, 8)
    leaf = hidden.double().requires_grad_()
    exact_layer(leaf)[0].square().sum().backward()
    close(torch.func.grad(lambda tokens: layer(tokens)[0].square().sum())(hidden), leaf.grad)
    out = torch.func.jvp(lambda tokens: layer(tokens)[0].square().sum(), (hidden,), (tangent,))[1]
    close(out, (leaf.grad * tangent.double()).sum())
    parameters = dict(layer.named_parameters())
    grads = torch.func.grad(lambda given: torch.func.functional_call(layer, given, hidden)[0].square().sum())(
        parameters
    )
    for name, parameter in exact_layer.named_parameters():
        close(grads[name], parameter.grad)


@pytest.mark.parametrize("dispatch", ["sorted", "dense"])
def test_gradients_of_each_sample_through_a_layer(dispatch: str) -> None:
    """Each sample has a routing of its own, with as many rows as it has unmasked tokens."""
    layer = moegate.MoE(8, 6, 5, olmoe(2), dispatch=dispatch)
    hidden, tangent, mask = torch.randn(3, 7, 8), torch.randn(3, 7, 8), torch.rand(3, 7) > 0.3

    def loss(tokens: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        return layer(tokens, token_mask=token_mask)[0].square().sum()

    leaf = hidden.clone().requires_grad_()
    sum(map(loss, leaf, mask)).backward()
    close(torch.vmap(torch.func.grad(loss))(hidden, mask), leaf.grad.double())
    along = torch.vmap(lambda *one: torch.func.jvp(lambda tokens: loss(tokens, one[2]), one[:1], one[1:2])[1])
    close(along(hidden, tangent, mask), (leaf.grad * tangent).sum(dim=(1, 2)).double())
    counts = torch.vmap(lambda *one: layer(one[0], token_mask=one[1])[1].load)(hidden, mask)
    assert counts.sum(dim=-1).equal(2 * mask.sum(dim=-1))


def test_counts_and_totals_of_each_sample() -> None:
    logits = torch.randn(3, 5, 8)

    def gated(sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(topk_gate(sample, top_k=2, score="softmax", with_counts=True, with_logsumexp=True))

    for mapped, alone in zip(torch.vmap(gated)(logits), zip(*map(gated, logits), strict=True), strict=True):
        torch.testing.assert_close(mapped, torch.stack(alone))


def test_buffers_of_gradients_stay_alone() -> None:
    """What a transform returns is not added to ``main_grad`` as well."""
    layer = moegate.MoE(8, 6, 5, olmoe(2))
    hidden = torch.randn(7, 8)
    expected = torch.func.grad(lambda tokens: layer(tokens)[0].sum())(hidden)
    for weight in (layer.experts.gate_up_proj, layer.experts.down_proj):
        weight.main_grad = torch.zeros_like(weight)
    torch.testing.assert_close(torch.func.grad(lambda tokens: layer(tokens)[0].sum())(hidden), expected)
    assert not layer.experts.down_proj.main_grad.any()


@pytest.mark.parametrize("way", ["grad", "jvp"])
def test_a_compiled_transform(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # a compiler can't trace through poisoned memory
    torch._dynamo.trace_rules.clear_lru_cache()
    torch.compiler.reset()
    layer = moegate.MoE(8, 6, 5, olmoe(2))
    tangent = torch.randn(7, 8)

    def derivative(hidden: torch.Tensor) -> torch.Tensor:
        def loss(tokens: torch.Tensor) -> torch.Tensor:
            return layer(tokens)[0].square().sum()

        return torch.func.grad(loss)(hidden) if way == "grad" else torch.func.jvp(loss, (hidden,), (tangent,))[1]

    hidden = torch.randn(7, 8)
    torch.testing.assert_close(torch.compile(derivative, backend="aot_eager")(hidden), derivative(hidden))
