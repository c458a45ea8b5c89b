"""mixture: against sums in float64, bit by bit against the four operators, and where the layer takes it."""

import pytest
import torch
from mixture_cases import DTYPES, Given, given, oracle
from torch import Tensor
from triton_support import ON_TRITON

from moegate.ops import combine, dispatch_plan, mixture, permute
from moegate.ops.experts import ACTIVATIONS, experts
from moegate.ops.library import KERNELS, available_isas, forced_isa

every_isa = pytest.mark.parametrize("isa", available_isas() or ("reference",))


def one_after_the_other(inputs: Given, activation: str, weight_input: bool) -> Tensor:
    hidden_TD, index_TK, weights_TK, up, down_EDF = inputs
    places = dispatch_plan(index_TK, up.shape[0])
    rows_RD = permute(hidden_TD, places.slot, places.inverse, weights_TK if weight_input else None)
    out_RD = experts(rows_RD, up, down_EDF, places.offsets, activation)
    return combine(out_RD, places.slot, places.inverse, None if weight_input else weights_TK)


def run(isa: str, inputs: Given, activation: str, weight_input: bool = False) -> Tensor:
    if isa == "reference":
        return mixture(*inputs, activation, weight_input=weight_input)
    with forced_isa(isa):
        return mixture(*inputs, activation, weight_input=weight_input)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weight_input", (False, True))
@every_isa
def test_against_float64(isa: str, activation: str, weight_input: bool) -> None:
    inputs = given(activation=activation)
    out = run(isa, inputs, activation, weight_input)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), oracle(inputs, activation, weight_input), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", (0, 1, 2, 31))
@pytest.mark.parametrize("weight_input", (False, True))
@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64, torch.float16))
@every_isa
def test_bit_by_bit_what_the_four_operators_give(isa: str, dtype: torch.dtype, weight_input: bool, tokens: int) -> None:
    inputs = given(tokens, dtype=dtype)
    out = run(isa, inputs, "swiglu", weight_input)
    if isa == "reference":
        expected = one_after_the_other(inputs, "swiglu", weight_input)
        if ON_TRITON:  # the Triton kernels round less often, and add in another order
            close_to(out, expected)
        else:
            assert out.equal(expected)
        return
    with forced_isa(isa):
        assert out.equal(one_after_the_other(inputs, "swiglu", weight_input))


def close_to(out: Tensor, expected: Tensor) -> None:
    bound = {torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(out.dtype, 1e-5)
    scale = float(expected.abs().amax()) if expected.numel() else 0.0
    torch.testing.assert_close(out, expected, rtol=0, atol=bound * scale)


def test_strides_and_narrow_indices_do_not_matter() -> None:
    hidden_TD, index_TK, weights_TK, up, down_EDF = given()
    plain = mixture(hidden_TD, index_TK, weights_TK, up, down_EDF)
    close = Tensor.equal if KERNELS.loaded else torch.allclose
    spread = hidden_TD.t().contiguous().t(), index_TK.int().t().contiguous().t(), weights_TK.t().contiguous().t()
    assert close(mixture(*spread, up.mT.contiguous().mT, down_EDF.mT.contiguous().mT), plain)
    assert close(mixture(hidden_TD, index_TK, weights_TK.double(), up, down_EDF), plain)


def test_no_slot_gives_zeros() -> None:
    hidden_TD, _, _, up, down_EDF = given(4)
    nowhere, worth_nothing = torch.full((4, 2), -1), torch.full((4, 2), float("nan"))
    assert not mixture(hidden_TD, nowhere, worth_nothing, up, down_EDF).any()
    assert not mixture(hidden_TD, nowhere[:, :0], worth_nothing[:, :0], up, down_EDF).any()


def test_gradients_are_those_of_the_four_operators() -> None:
    hidden_TD, index_TK, weights_TK, up, down_EDF = (
        value.double().requires_grad_() if value.is_floating_point() else value for value in given(4)
    )

    def sums(*leaves: Tensor) -> Tensor:
        return mixture(leaves[0], index_TK, *leaves[1:])

    # In the interpreter, which is slow, along a few random directions.
    assert torch.autograd.gradcheck(sums, (hidden_TD, weights_TK, up, down_EDF), fast_mode=ON_TRITON)
    narrow = [leaf.detach().float().requires_grad_() for leaf in (hidden_TD, weights_TK, up, down_EDF)]
    sums(*narrow).square().sum().backward()
    sums(hidden_TD, weights_TK, up, down_EDF).square().sum().backward()
    for leaf, wide in zip(narrow, (hidden_TD, weights_TK, up, down_EDF), strict=True):
        torch.testing.assert_close(leaf.grad, wide.grad.float(), rtol=1e-3, atol=1e-3)


WRONG: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "activation": ({"activation": "tanh"}, ValueError, "activation='tanh' is none"),
    "tokens": ({"hidden_TD": torch.zeros(6, 13)}, ValueError, r"expected \[T, D\], \[T, K\]"),
    "weights": ({"weights_TK": torch.zeros(7, 2)}, ValueError, r"weights \(7, 2\) do not fit"),
    "up": ({"up": torch.zeros(22, 13)}, ValueError, r"up \(22, 13\) .* do not fit"),
    "width": ({"hidden_TD": torch.zeros(7, 12)}, ValueError, r"hidden \(7, 12\), up .* do not fit"),
    "far expert": ({"index_TK": torch.full((7, 3), 5)}, RuntimeError, "index"),
    "negative expert": ({"index_TK": torch.full((7, 3), -2)}, RuntimeError, "index"),
    "list": ({"index_TK": [[0, 1, 2]] * 7}, TypeError, "must be tensors"),
    "index of float": ({"index_TK": torch.zeros(7, 3)}, TypeError, "int32 or int64"),
}

NOT_SEEN = ("far expert", "negative expert")


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_said(name: str) -> None:
    changed, error, message = WRONG[name]
    names = ("hidden_TD", "index_TK", "weights_TK", "up", "down_EDF")
    arguments = dict(zip(names, given(), strict=True)) | changed
    if ON_TRITON and name in NOT_SEEN:
        # To look would mean to wait for the device: such a slot is empty.
        out_TD = mixture(**arguments)  # type: ignore[arg-type]
        assert out_TD.shape == (7, 13) and not out_TD.any()
        return
    with pytest.raises(error, match=message):
        mixture(**arguments)  # type: ignore[arg-type]


def test_the_registration() -> None:
    inputs = given()
    torch.library.opcheck(
        torch.ops.moegate.mixture.default, (*inputs, 0, False), test_utils=("test_schema", "test_faketensor")
    )
