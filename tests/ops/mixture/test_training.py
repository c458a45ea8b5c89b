"""trained_mixture: its outputs and gradients against autograd through loops in float64, and what a gradient needs."""

import pytest
import torch
from mixture_cases import DTYPES, Given, given, oracle
from torch import Tensor
from triton_support import ON_TRITON

from moegate.ops.experts import ACTIVATIONS
from moegate.ops.mixture.training import TRAINED_MIXTURE
from moegate.ops.mixture.training_reference import trained_mixture_backward_reference

BACKWARD = torch.ops.moegate.trained_mixture_backward.default
BOUND = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2}
FLOATS = (0, 2, 3, 4)
"""The places of the arguments that have a gradient."""


def leaves(inputs: Given) -> Given:
    return tuple(  # type: ignore[return-value]
        value.detach().clone().requires_grad_() if value.is_floating_point() else value for value in inputs
    )


def gradients(out_TD: Tensor, inputs: Given, grad_TD: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out_TD, [inputs[place] for place in FLOATS], grad_TD.to(out_TD.dtype)))


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    scale = float(expected.detach().abs().amax()) if expected.numel() else 0.0
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=BOUND[dtype] * scale)


def compare(inputs: Given, activation: str = "swiglu") -> None:
    """Output and all four gradients against the loops."""
    mine, dtype = leaves(inputs), inputs[0].dtype
    wide = leaves(tuple(value.double() if value.is_floating_point() else value for value in inputs))  # type: ignore[arg-type]
    out_TD, expected_TD = TRAINED_MIXTURE(*mine, ACTIVATIONS.index(activation))[0], oracle(wide, activation)
    grad_TD = torch.randn(out_TD.shape).to(dtype)
    assert out_TD.dtype == dtype
    assert_close(out_TD, expected_TD, dtype)
    expected = gradients(expected_TD, wide, grad_TD)
    for found, value in zip(gradients(out_TD, mine, grad_TD), expected, strict=True):
        assert_close(found, value, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_against_float64(activation: str, dtype: torch.dtype) -> None:
    compare(given(activation=activation, dtype=dtype), activation)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1), (4, 4)])
@pytest.mark.parametrize("tokens", [1, 17])
def test_sizes(tokens: int, sizes: tuple[int, int]) -> None:
    inputs = given(tokens, sizes=sizes)
    inputs[1][0, 0], inputs[2][0, 0] = 0, 0.5
    compare(inputs)


def test_a_token_may_ask_an_expert_twice() -> None:
    hidden_TD, _, _, up, down_EDF = given(3)
    compare((hidden_TD, torch.tensor([[1, 1], [4, 1], [1, -1]]), torch.rand(3, 2), up, down_EDF))


def test_strides_and_narrow_indices_do_not_matter() -> None:
    hidden_TD, index_TK, weights_TK, up, down_EDF = given()
    spread = hidden_TD.t().contiguous().t(), index_TK.int().t().contiguous().t(), weights_TK.t().contiguous().t()
    compare((*spread, up.mT.contiguous().mT, down_EDF.mT.contiguous().mT))


@pytest.mark.parametrize("shape", [(0, 2), (4, 0), (4, 2)])
def test_no_slot_has_an_expert(shape: tuple[int, int]) -> None:
    hidden_TD, _, _, up, down_EDF = given(shape[0])
    inputs = leaves((hidden_TD, torch.full(shape, -1), torch.full(shape, float("nan")), up, down_EDF))
    out_TD = TRAINED_MIXTURE(*inputs, 0)[0]
    assert out_TD.shape == hidden_TD.shape and not out_TD.any()
    for place, grad in zip(FLOATS, gradients(out_TD, inputs, torch.ones_like(out_TD)), strict=True):
        assert grad.shape == inputs[place].shape and not grad.any()


def test_only_rows_without_an_expert_hold_nothing_sound() -> None:
    inputs = given()
    out_TD, slot_R, inverse_TK, offsets_E, pre = TRAINED_MIXTURE(*inputs, 0)
    num_rows = int((inputs[1] >= 0).sum())
    assert int(offsets_E[-1]) == num_rows and slot_R.shape[0] == inputs[1].numel()
    assert (slot_R[:num_rows] >= 0).all() and (slot_R[num_rows:] == -1).all()
    assert inverse_TK.flatten()[slot_R[:num_rows]].equal(torch.arange(num_rows))
    assert not out_TD.isnan().any() and not pre[:num_rows].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_has_the_same_bits_whatever_else_is_asked_for(dtype: torch.dtype) -> None:
    inputs = given(dtype=dtype)
    grad_TD, found = torch.randn(7, 13).to(dtype), {}
    for wanted in (FLOATS, *((place,) for place in FLOATS), (0, 3), (2, 4)):
        mine = [value.clone().requires_grad_(place in wanted) for place, value in enumerate(inputs)]
        TRAINED_MIXTURE(*mine, 0)[0].backward(grad_TD)
        for place, value in enumerate(mine):
            assert (value.grad is not None) == (place in wanted)
            if place in wanted:
                assert found.setdefault(place, value.grad).equal(value.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_arguments_give_the_same_bits(dtype: torch.dtype) -> None:
    inputs, grad_TD = given(23, dtype=dtype), torch.randn(23, 13).to(dtype)

    def run() -> list[Tensor]:
        mine = leaves(inputs)
        out_TD = TRAINED_MIXTURE(*mine, 0)[0]
        return [out_TD.detach(), *gradients(out_TD, mine, grad_TD)]

    for first, second in zip(run(), run(), strict=True):
        assert first.equal(second)


def test_second_derivatives() -> None:
    inputs = leaves(tuple(v.double() if v.is_floating_point() else v for v in given(3, sizes=(3, 2))))  # type: ignore[arg-type]
    index_TK = inputs[1]
    with torch.no_grad():
        inputs[2].nan_to_num_()

    def out(*values: Tensor) -> Tensor:
        return TRAINED_MIXTURE(values[0], index_TK, *values[1:], 0)[0]  # type: ignore[no-any-return]

    floats = [inputs[place] for place in FLOATS]
    # In the interpreter, which is slow, along a few random directions.
    assert torch.autograd.gradcheck(out, floats, fast_mode=ON_TRITON)
    assert torch.autograd.gradgradcheck(out, floats, fast_mode=ON_TRITON)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_penalty_on_the_gradient(dtype: torch.dtype) -> None:
    inputs = given(4, dtype=dtype)

    def penalised(mine: Given, out_TD: Tensor) -> list[Tensor]:
        (grad_TD,) = torch.autograd.grad(out_TD.square().sum(), mine[0], create_graph=True)
        return list(torch.autograd.grad(grad_TD.square().sum(), [mine[place] for place in FLOATS]))

    mine = leaves(inputs)
    wide = leaves(tuple(v.double() if v.is_floating_point() else v for v in inputs))  # type: ignore[arg-type]
    expected = penalised(wide, oracle(wide, "swiglu"))
    for found, value in zip(penalised(mine, TRAINED_MIXTURE(*mine, 0)[0]), expected, strict=True):
        assert_close(found, value, torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)


def test_the_backward_is_that_of_the_reference() -> None:
    inputs = given()
    _, *kept = TRAINED_MIXTURE(*inputs, 1)
    arguments = (torch.randn(7, 13), inputs[0], inputs[2], *kept, *inputs[3:], 1)
    for needs in ((True, True, True), (False, True, False), (True, False, False), (False, False, True)):
        found, expected = BACKWARD(*arguments, *needs), trained_mixture_backward_reference(*arguments, *needs)
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs, torch.float32)


@pytest.mark.parametrize("tokens", [0, 5])
def test_the_registration(tokens: int) -> None:
    inputs = leaves(given(tokens))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(TRAINED_MIXTURE, (*inputs, 0), test_utils=checks)
    with torch.no_grad():
        _, *kept = TRAINED_MIXTURE(*inputs, 0)
    arguments = (torch.randn(tokens, 13), inputs[0], inputs[2], *kept, *inputs[3:], 0, True, True, True)
    torch.library.opcheck(BACKWARD, arguments, test_utils=checks[:3])


WRONG: dict[str, tuple[dict[int, object], str]] = {
    "activation": ({5: 6}, "activation must be 0 to 5"),
    "tokens": ({0: torch.zeros(6, 13)}, "do not fit"),
    "weights": ({2: torch.zeros(7, 2)}, "do not fit"),
    "up": ({3: torch.zeros(5, 11, 13)}, "do not fit"),
    "down": ({4: torch.zeros(5, 13, 12)}, "do not fit"),
    "dimensions": ({4: torch.zeros(13, 11)}, "do not fit"),
    "types": ({4: torch.zeros(5, 13, 11).double()}, "one floating type"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_said(name: str) -> None:
    changed, message = WRONG[name]
    arguments = [changed.get(place, value) for place, value in enumerate((*given(), 0))]
    with pytest.raises(RuntimeError, match=message):
        TRAINED_MIXTURE(*arguments)
