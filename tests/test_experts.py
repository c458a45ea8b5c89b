"""Experts against a loop over them, and against the experts of transformers with the same weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moegate.experts import Experts, SharedExperts

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": functional.silu,
    "geglu": functional.gelu,
    "gelu": functional.gelu,
    "relu": functional.relu,
    "relu2": lambda values: functional.relu(values) ** 2,
    "silu": functional.silu,
}
GATED = ("swiglu", "geglu")
every_activation = pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
OFFSETS = [2, 2, 7, 9]


def one_expert(experts: Experts, expert: int, row: Tensor) -> Tensor:
    act = ACTIVATIONS[experts.activation]
    if experts.activation in GATED:
        gate, up = functional.linear(row, experts.gate_up_proj[expert]).chunk(2, dim=-1)
        return functional.linear(act(gate) * up, experts.down_proj[expert])
    return functional.linear(act(functional.linear(row, experts.up_proj[expert])), experts.down_proj[expert])


@every_activation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_loop(activation: str, dtype: torch.dtype) -> None:
    experts = Experts(4, 6, 5, activation).to(dtype)
    rows = torch.randn(11, 6, dtype=dtype)
    out = experts(rows, torch.tensor(OFFSETS))
    owners = [0, 0, 2, 2, 2, 2, 2, 3, 3]
    for row, owner in enumerate(owners):
        torch.testing.assert_close(out[row], one_expert(experts, owner, rows[row]))
    assert not out[9:].any()


@every_activation
def test_derivatives(activation: str) -> None:
    experts = Experts(3, 3, 2, activation).double()
    rows = (torch.randn(5, 3, dtype=torch.float64) + 0.1).requires_grad_()
    names, values = zip(*experts.named_parameters(), strict=True)

    def run(rows: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(experts, state, (rows, torch.tensor([1, 1, 4])))

    assert torch.autograd.gradcheck(run, (rows, *values))


def test_an_expert_without_rows_gets_a_zero_gradient() -> None:
    experts = Experts(3, 4, 5)
    experts(torch.randn(4, 4), torch.tensor([2, 2, 4])).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[1].any() and bool(parameter.grad[[0, 2]].any())


@pytest.mark.parametrize(
    ("module", "name", "sizes"),
    [
        ("mixtral", "Mixtral", {"num_local_experts": 4, "intermediate_size": 10}),
        ("qwen3_moe", "Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 10}),
    ],
)
def test_against_transformers_with_the_same_state(module: str, name: str, sizes: dict[str, int]) -> None:
    modeling = pytest.importorskip(f"transformers.models.{module}.modeling_{module}")
    config = getattr(modeling, f"{name}Config")(hidden_size=8, num_experts_per_tok=2, **sizes)
    theirs = getattr(modeling, f"{name}Experts")(config)
    ours = Experts(4, 8, 10)
    theirs.load_state_dict(ours.state_dict())
    hidden = torch.randn(9, 8)
    expert = torch.randint(0, 4, (9, 1))
    order = torch.argsort(expert[:, 0], stable=True)
    out = ours(hidden[order], torch.bincount(expert[:, 0], minlength=4).cumsum(0))
    expected = theirs(hidden, expert, torch.ones(9, 1))
    torch.testing.assert_close(out, expected[order], rtol=1e-5, atol=1e-6)


@every_activation
def test_shared_experts_are_one_wide_network(activation: str) -> None:
    shared, hidden = SharedExperts(6, 10, activation), torch.randn(2, 3, 6)
    up = hidden @ shared.up_proj.weight.T
    act = ACTIVATIONS[activation]
    inner = act(hidden @ shared.gate_proj.weight.T) * up if activation in GATED else act(up)
    torch.testing.assert_close(shared(hidden), inner @ shared.down_proj.weight.T)
    assert all(module.bias is None for module in shared.children())


def test_the_layout_of_the_weights() -> None:
    gated, plain = Experts(4, 6, 5), Experts(4, 6, 5, "gelu")
    assert {name: tuple(p.shape) for name, p in gated.named_parameters()} == {
        "gate_up_proj": (4, 10, 6),
        "down_proj": (4, 6, 5),
    }
    assert {name: tuple(p.shape) for name, p in plain.named_parameters()} == {
        "up_proj": (4, 5, 6),
        "down_proj": (4, 6, 5),
    }


def test_weights_start_as_those_of_a_linear_layer() -> None:
    experts = Experts(8, 64, 100)
    assert float(experts.gate_up_proj.detach().abs().max()) == pytest.approx(1 / 8, rel=0.01)
    assert float(experts.down_proj.detach().abs().max()) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 6, 5), ValueError, "num_experts must be at least 1"),
        ((4, 6.0, 5), TypeError, "hidden_size must be an integer"),
        ((4, 6, -1), ValueError, "intermediate_size must be at least 1"),
        ((4, 6, 5, "swiglue"), ValueError, r"Did you mean 'swiglu'\?"),
    ],
)
def test_sizes_that_are_none(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Experts(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("wide", [False, True])
def test_gradients_are_added_to_the_buffers_of_the_weights(activation: str, wide: bool) -> None:
    dtype = torch.bfloat16 if wide else torch.float32
    plain = Experts(3, 8, 16, activation).to(dtype)
    adding = copy.deepcopy(plain)
    for weight in adding.parameters():
        weight.main_grad = torch.ones(weight.shape, dtype=torch.float32)
    rows, offsets = torch.randn(7, 8, dtype=dtype), torch.tensor([4, 4, 7])
    for experts in (plain, adding):
        experts(rows, offsets).float().square().sum().backward()
    for one, other in zip(plain.parameters(), adding.parameters(), strict=True):
        assert other.grad is None
        assert other.main_grad[1].eq(1).all()  # an expert without rows
        tolerance = 2e-2 if wide else 1e-5
        torch.testing.assert_close(other.main_grad - 1, one.grad.float(), rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        assert adding(rows, offsets).equal(plain(rows, offsets))
