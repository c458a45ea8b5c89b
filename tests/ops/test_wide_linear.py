"""wide_linear: bfloat16 products with float32 results, and the gate that takes them."""

import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from triton_support import ON_TRITON, only_on_triton

from moegate.gates import CosineGate, LinearGate, NoisyLinearGate, ResidualGate
from moegate.ops.wide_linear import takes, wide_linear

BACKWARD = torch.ops.moegate.wide_linear_backward.default
SHAPES = [(1, 1, 1), (5, 7, 37), (33, 130, 70), (70, 5, 200), (2, 3, 2100)]
"""Tokens, outputs, hidden size."""


def given(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens, outputs, hidden_size = shape
    drawn = torch.randn(tokens, hidden_size), torch.randn(outputs, hidden_size)
    hidden_TD, weight_ED = (value.bfloat16().requires_grad_() for value in drawn)
    return hidden_TD, weight_ED, torch.randn(tokens, outputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(shape: tuple[int, int, int]) -> None:
    hidden_TD, weight_ED, grad_TE = given(shape)
    out_TE = wide_linear(hidden_TD, weight_ED)
    out_TE.backward(grad_TE)
    hidden, weight, grad = (value.detach().double() for value in (hidden_TD, weight_ED, grad_TE))
    assert out_TE.dtype == torch.float32
    torch.testing.assert_close(out_TE.double(), hidden @ weight.T, rtol=0, atol=1e-6 * shape[2] ** 0.5 * 4)
    # Rounded once, from float32: half a unit in the last place of bfloat16, and now and then a little more.
    for found, expected in ((hidden_TD.grad, grad @ weight), (weight_ED.grad, grad.T @ hidden)):
        bound = expected.abs() * 2**-8 + 1e-5 * expected.abs().amax()
        assert ((found.double() - expected).abs() <= bound).all()


def test_the_gradient_is_not_shortened() -> None:
    # 1 + 2**-20 in a gradient is seen where the first part of it cancels.
    grad_TE = torch.tensor([[1 + 2**-20, -1.0]]).repeat(40, 1)
    hidden_TD, weight_ED = torch.ones(40, 16, dtype=torch.bfloat16), torch.ones(2, 16, dtype=torch.bfloat16)
    of_hidden, of_weight = BACKWARD(grad_TE, hidden_TD, weight_ED, True, True)
    assert of_hidden.eq(2**-20).all() and of_weight[1].eq(-40).all()
    infinite = BACKWARD(torch.full((40, 2), float("inf")), hidden_TD, weight_ED, True, True)
    assert infinite[0].eq(float("inf")).all() and infinite[1].eq(float("inf")).all()


@pytest.mark.parametrize("tokens", [0, 4, 40])
def test_strides_and_empty_sizes(tokens: int) -> None:
    hidden_TD, weight_ED, grad_TE = given((tokens, 6, 10))
    spread = hidden_TD.detach().t().contiguous().t(), weight_ED.detach().t().contiguous().t()
    torch.testing.assert_close(wide_linear(*spread), wide_linear(hidden_TD, weight_ED), rtol=1e-5, atol=1e-5)
    plain = BACKWARD(grad_TE, hidden_TD, weight_ED, True, True)
    for found, expected in zip(BACKWARD(grad_TE.t().contiguous().t(), *spread, True, True), plain, strict=True):
        torch.testing.assert_close(found, expected)
    assert [value.numel() for value in BACKWARD(grad_TE, *spread, False, False)] == [0, 0]
    assert wide_linear(hidden_TD[:, :0], weight_ED[:, :0]).equal(torch.zeros(tokens, 6))


def test_parts_of_the_tokens_are_added() -> None:
    # More than one part of them; whole numbers, so that every sum is exact.
    grad_TE, hidden_TD = torch.randint(-2, 3, (1100, 2)).float(), torch.randint(-2, 3, (1100, 3)).bfloat16()
    weight_ED = torch.ones(2, 3, dtype=torch.bfloat16)
    assert BACKWARD(grad_TE, hidden_TD, weight_ED, False, True)[1].equal((grad_TE.T @ hidden_TD.float()).bfloat16())


@only_on_triton
def test_many_tokens_have_longer_parts_and_no_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = importlib.import_module("moegate.ops.wide_linear.gpu_operator")
    # A million tokens of DeepSeek-V3's router would else leave a thousand gradients of 7 MB.
    assert operator.parts_of(1_000_000)[1] <= 32
    monkeypatch.setattr(operator, "_TOKENS_OF_A_PART", 32)
    monkeypatch.setattr(operator, "_MOST_PARTS", 2)
    assert operator.parts_of(150) == (96, 2)
    grad_TE, hidden_TD = torch.randint(-2, 3, (150, 2)).float(), torch.randint(-2, 3, (150, 3)).bfloat16()
    weight_ED = torch.ones(2, 3, dtype=torch.bfloat16)
    assert BACKWARD(grad_TE, hidden_TD, weight_ED, False, True)[1].equal((grad_TE.T @ hidden_TD.float()).bfloat16())


def test_second_derivatives() -> None:
    hidden_TD, weight_ED, grad_TE = given((4, 5, 6))

    def penalty(out_TE: Tensor, hidden: Tensor, weight: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(out_TE, (hidden, weight), grad_TE * out_TE, create_graph=True)
        total = first[0].float().square().sum() + first[1].float().square().sum()
        return list(torch.autograd.grad(total, (hidden, weight)))

    wide = [value.detach().float().requires_grad_() for value in (hidden_TD, weight_ED)]
    expected = penalty(functional.linear(*wide), *wide)
    for found, value in zip(penalty(wide_linear(hidden_TD, weight_ED), hidden_TD, weight_ED), expected, strict=True):
        torch.testing.assert_close(found.float(), value, rtol=0, atol=0.03 * float(value.abs().max()))


@pytest.mark.parametrize("tokens", [3, 40])
def test_the_registration(tokens: int) -> None:
    hidden_TD, weight_ED, grad_TE = given((tokens, 5, 6))
    torch.library.opcheck(torch.ops.moegate.wide_linear.default, (hidden_TD, weight_ED))
    torch.library.opcheck(BACKWARD, (grad_TE, hidden_TD.detach(), weight_ED.detach(), True, True))


@pytest.mark.parametrize(
    ("hidden", "weight", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), "must be bfloat16"),
        (torch.zeros(2, 3).bfloat16(), torch.zeros(4, 2).bfloat16(), r"must be \[T, D\], \[E, D\]"),
        (torch.zeros(3).bfloat16(), torch.zeros(4, 3).bfloat16(), r"must be \[T, D\], \[E, D\]"),
    ],
)
def test_what_does_not_fit_is_said(hidden: Tensor, weight: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        wide_linear(hidden, weight)


def test_a_gradient_that_does_not_fit_is_said() -> None:
    hidden_TD, weight_ED, grad_TE = given((2, 3, 4))
    for wrong in (grad_TE[:1], grad_TE.double()):
        with pytest.raises(RuntimeError, match=r"grad must be \(2, 3\) of float32"):
            BACKWARD(wrong, hidden_TD, weight_ED, True, True)


# --- in the gate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LinearGate, NoisyLinearGate, ResidualGate, CosineGate])
def test_a_narrow_gate_gives_what_a_wide_one_does(kind: type[LinearGate]) -> None:
    gate, hidden = kind(16, 5).bfloat16(), torch.randn(2, 20, 16).bfloat16().requires_grad_()
    wide = kind(16, 5)
    wide.load_state_dict({name: value.float() for name, value in gate.state_dict().items()})
    found, expected = gate(hidden), wide(hidden.detach().float())
    assert found.dtype == torch.float32 and found.shape == (2, 20, 5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    assert hidden.grad.dtype == torch.bfloat16 and torch.isfinite(hidden.grad).all()


def test_which_gates_take_it() -> None:
    hidden, gate = torch.randn(3, 16).bfloat16(), LinearGate(16, 5, bias=True)
    torch.nn.init.normal_(gate.bias)
    assert not takes(hidden, gate.weight)  # of float32
    gate.bfloat16()
    assert takes(hidden, gate.weight) == ON_TRITON
    assert LinearGate(16, 5, float32=False).bfloat16()(hidden).dtype == torch.float32
    expected = functional.linear(hidden.float(), gate.weight.float(), gate.bias.float())
    torch.testing.assert_close(gate(hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("compiler")
def test_a_compiled_gate_is_one_graph() -> None:
    gate, hidden = LinearGate(16, 5).bfloat16(), torch.randn(2, 20, 16).bfloat16()
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden), gate(hidden))
    compiled(hidden).sum().backward()
    found = gate.weight.grad.clone()
    gate.weight.grad = None
    gate(hidden).sum().backward()
    assert found.equal(gate.weight.grad)
