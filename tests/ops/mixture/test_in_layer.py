"""Where the layer takes one operator for its second half, and what it must be the same as then."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from triton_support import ON_TRITON

import moegate
from moegate.ops import mixture

# Infinities and NaN are the interpreter's daily bread.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each call of mixture by a layer."""
    seen: list[int] = []

    def counted(hidden_TD: Tensor, *arguments: object, **options: object) -> Tensor:
        seen.append(hidden_TD.shape[0])
        return mixture(hidden_TD, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(moegate.layer, "mixture", counted)
    return seen


def layer(rule: moegate.RoutingRule | None = None, **options: object) -> moegate.MoE:
    return moegate.MoE(13, 11, 5, rule or moegate.recipes.topk(2), **options).eval()  # type: ignore[arg-type]


def watched(moe: moegate.MoE) -> moegate.MoE:
    """The same layer with a hook on its experts, so that they run as a module."""
    other = copy.deepcopy(moe)
    other.experts.register_forward_pre_hook(lambda module, arguments: None)
    return other


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_gives_the_same_with_and_without(dtype: torch.dtype, calls: list[int]) -> None:
    moe, hidden = layer(num_shared_experts=1).to(dtype), torch.randn(2, 4, 13).to(dtype)
    mask = torch.rand(2, 4) < 0.7
    with torch.no_grad():
        out, routing = moe(hidden, token_mask=mask)
    assert calls == [8]
    recorded, again = moe(hidden, token_mask=mask)
    assert calls == [8, 8] if ON_TRITON else [8]
    assert recorded.requires_grad and routing.expert_index.equal(again.expert_index)
    if ON_TRITON:
        torch.testing.assert_close(out, recorded)
    else:
        assert out.equal(recorded)


def test_a_layer_whose_experts_are_looked_at_calls_them(calls: list[int]) -> None:
    hidden, seen = torch.randn(4, 13), []
    hooked, derived, replaced = layer(), layer(), layer()
    plain = derived(hidden)[0]
    calls.clear()
    replaced.experts.forward = lambda rows_RD, offsets_E: torch.zeros_like(rows_RD)
    hooked.experts.register_forward_hook(lambda module, arguments, out: seen.append(out.shape))

    class Doubled(moegate.Experts):
        def forward(self, rows_RD: Tensor, offsets_E: Tensor) -> Tensor:
            return 2.0 * super().forward(rows_RD, offsets_E)

    derived.experts.__class__ = Doubled
    with torch.no_grad():
        hooked(hidden)
        assert not replaced(hidden)[0].any()
        torch.testing.assert_close(derived(hidden)[0], 2.0 * plain)
        layer(dispatch="dense")(hidden)
    assert seen == [(8, 13)] and calls == []


def test_hooks_on_the_way_back_are_served(calls: list[int]) -> None:
    seen: list[tuple[int, ...]] = []
    for register in ("register_full_backward_hook", "register_full_backward_pre_hook"):
        moe = layer()
        getattr(moe.experts, register)(lambda module, *grads: seen.append(grads[-1][0].shape))
        moe(torch.randn(4, 13, requires_grad=True))[0].sum().backward()
    assert seen == [(8, 13), (8, 13)] and calls == []


def gradients(moe: moegate.MoE, hidden: Tensor, **options: object) -> list[Tensor]:
    """The output, and the gradients of the hidden states and all parameters."""
    hidden = hidden.clone().requires_grad_()
    out = checkpoint(moe, hidden, use_reentrant=False)[0] if options.pop("checkpointed", False) else moe(hidden)[0]
    out.float().square().sum().backward()
    found = [out.detach(), hidden.grad, *(parameter.grad for parameter in moe.parameters())]
    moe.zero_grad()
    return found  # type: ignore[return-value]


RULES = {
    "topk": moegate.recipes.topk(2),
    "llama4": moegate.recipes.llama4(),
    "deepseek_v3": moegate.recipes.deepseek_v3(top_k=3, num_groups=1, groups_kept=1),
    "switch": moegate.recipes.switch(capacity_factor=1.0).replace(noise=None),
}


@pytest.mark.parametrize("name", RULES)
def test_training_through_one_operator_and_through_the_module(name: str, calls: list[int]) -> None:
    moe = layer(RULES[name], expert_scale=True, num_shared_experts=1).train()
    hidden = torch.randn(9, 13)
    found = gradients(moe, hidden)
    assert calls == ([9] if ON_TRITON else [])
    for ours, theirs in zip(found, gradients(watched(moe), hidden), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_recomputed_has_the_same_bits(calls: list[int]) -> None:
    moe, hidden = layer().train(), torch.randn(9, 13)
    for plain, again in zip(gradients(moe, hidden), gradients(moe, hidden, checkpointed=True), strict=True):
        assert plain.equal(again)
    assert calls == ([9, 9, 9] if ON_TRITON else [])


def test_autocast_makes_the_products_narrow(calls: list[int]) -> None:
    moe, hidden = layer().train(), torch.randn(9, 13)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = gradients(moe, hidden), gradients(watched(moe), hidden)
        with torch.no_grad():
            assert moe(hidden)[0].dtype == torch.bfloat16
    assert calls == ([9, 9] if ON_TRITON else [])
    assert found[0].dtype == torch.bfloat16 and all(grad.dtype == torch.float32 for grad in found[1:])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03 * float(theirs.abs().max()))


def test_buffers_for_gradients_get_them(calls: list[int]) -> None:
    moe, hidden = layer().train(), torch.randn(9, 13)
    expected = gradients(watched(moe), hidden)
    for weight in moe.experts.parameters():
        weight.main_grad = torch.zeros_like(weight)
    gradients(moe, hidden)
    assert calls == []
    sums = {weight.shape: weight.main_grad for weight in moe.experts.parameters()}
    for grad in expected[3:]:
        if grad.shape in sums:
            torch.testing.assert_close(sums.pop(grad.shape), grad, rtol=1e-4, atol=1e-5)
    assert not sums


def test_nothing_of_the_size_of_the_rows_is_kept_but_what_went_into_the_activations() -> None:
    hidden = torch.randn(9, 13, requires_grad=True)
    moe, kept = layer(RULES["deepseek_v3"]), []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        moe(hidden)
    rows = [shape for shape in kept if shape[:1] == (27,) and len(shape) == 2]
    assert rows == [(27, 22)] if ON_TRITON else (27, 13) in rows


@pytest.mark.parametrize("name", ["topk", "deepseek_v3"])
@pytest.mark.usefixtures("compiler")
def test_compiled_training_is_one_graph(name: str) -> None:
    moe, hidden = layer(RULES[name]).train(), torch.randn(9, 13)
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    expected = gradients(moe, hidden)
    for ours, theirs in zip(gradients(compiled, hidden), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("compiler")
def test_compiled_training_takes_one_operator() -> None:
    moe, seen = layer().train(), []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes if "moegate" in str(node.target))
        return graph

    torch.compile(moe, fullgraph=True, backend=backend)(torch.randn(9, 13))
    assert ("moegate.trained_mixture.default" in seen) == ON_TRITON
    assert ("moegate.experts.default" in seen) != ON_TRITON


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, on their first import
def test_the_functional_transforms_see_through() -> None:
    moe, hidden = layer(), torch.randn(4, 13)
    hidden_dot = torch.randn(4, 13)

    def run(values: Tensor) -> Tensor:
        return moe(values)[0]

    _, forward_TD = torch.func.jvp(run, (hidden,), (hidden_dot,))
    step = 1e-3
    with torch.no_grad():
        expected_TD = (run(hidden + step * hidden_dot) - run(hidden - step * hidden_dot)) / (2 * step)
    torch.testing.assert_close(forward_TD, expected_TD, rtol=2e-2, atol=2e-2)
