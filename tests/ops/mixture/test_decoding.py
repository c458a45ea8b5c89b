"""The two kernels for few slots, and when they are taken."""

import pytest
import torch
from mixture_cases import oracle
from torch import Tensor
from triton_support import only_on_triton

from moegate.ops import mixture
from moegate.ops.experts import ACTIVATIONS, GATED
from moegate.ops.library import implementation

BOUND = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def given(shape: tuple[int, ...], dtype: torch.dtype, activation: str = "swiglu") -> tuple[Tensor, ...]:
    """``shape``: tokens, slots, experts, hidden size, width."""
    tokens, top_k, num_experts, hidden_size, width = shape
    index_TK = torch.rand(tokens, num_experts).argsort(dim=1)[:, :top_k]
    up = torch.randn(num_experts, (2 if activation in GATED else 1) * width, hidden_size) / hidden_size**0.5
    down_EDF = torch.randn(num_experts, hidden_size, width) / width**0.5
    hidden_TD, weights_TK = torch.randn(tokens, hidden_size), torch.rand(tokens, top_k)
    return hidden_TD.to(dtype), index_TK, weights_TK, up.to(dtype), down_EDF.to(dtype)


def decoded(inputs: tuple[Tensor, ...], activation: str, weight_input: bool = False) -> Tensor:
    """By the kernels for few slots, however many there are."""
    hidden_TD, index_TK, weights_TK, up, down_EDF = inputs
    decode = implementation("moegate.ops.mixture.gpu_operator_decode:decode")
    number = ACTIVATIONS.index(activation)
    out_TD: Tensor = decode(hidden_TD, index_TK, weights_TK, (up, down_EDF), number, weight_input)
    return out_TD


def assert_close(found: Tensor, expected: Tensor) -> None:
    atol = BOUND[found.dtype] * float(expected.abs().amax())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


@only_on_triton
@pytest.mark.parametrize("weight_input", [False, True])
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_against_float64(activation: str, dtype: torch.dtype, weight_input: bool) -> None:
    inputs = given((3, 2, 4, 24, 20), dtype, activation)
    inputs[1][1, 0], inputs[2][1, 0] = -1, float("nan")
    found = decoded(inputs, activation, weight_input)
    assert found.dtype == dtype
    assert_close(found, oracle(inputs, activation, weight_input))


@only_on_triton
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (1, 2, 3, 517, 7),  # more columns than a step of the first kernel
        (1, 3, 4, 9, 261),  # and of the second
        (1, 11, 12, 33, 17),  # more slots than a step
        (5, 1, 2, 40, 70),
    ],
)
def test_sizes_that_blocks_do_not_divide(shape: tuple[int, ...]) -> None:
    inputs = given(shape, torch.float32)
    assert_close(decoded(inputs, "swiglu"), oracle(inputs, "swiglu"))


@only_on_triton
def test_strides_do_not_matter() -> None:
    hidden_TD, index_TK, weights_TK, up, down_EDF = given((3, 2, 4, 24, 20), torch.bfloat16)
    plain = decoded((hidden_TD, index_TK, weights_TK, up, down_EDF), "geglu")
    spread = hidden_TD.t().contiguous().t(), index_TK.int().t().contiguous().t(), weights_TK.t().contiguous().t()
    assert decoded((*spread, up.mT.contiguous().mT, down_EDF.mT.contiguous().mT), "geglu").equal(plain)


@only_on_triton
def test_what_no_slot_names_is_not_read() -> None:
    hidden_TD, index_TK, weights_TK, up, down_EDF = given((4, 2, 6, 24, 20), torch.float32)
    index_TK[0], index_TK[1, 0], index_TK[2, 1], index_TK[3, 0] = -1, 6, -7, 2**40
    used = index_TK[(index_TK >= 0) & (index_TK < 6)]
    unused = [expert for expert in range(6) if expert not in used.tolist()]
    up[unused], down_EDF[unused], weights_TK[0] = float("nan"), float("nan"), float("nan")
    found = decoded((hidden_TD, index_TK, weights_TK, up, down_EDF), "swiglu")
    clean = index_TK.masked_fill((index_TK < 0) | (index_TK >= 6), -1)
    assert_close(found, oracle((hidden_TD, clean, weights_TK, up, down_EDF), "swiglu"))
    assert not found[0].any()


@only_on_triton
def test_a_token_has_the_same_bits_alone_and_among_others() -> None:
    inputs = given((4, 2, 6, 24, 20), torch.bfloat16)
    whole = decoded(inputs, "swiglu")
    for token in range(4):
        alone = decoded((*(value[token : token + 1] for value in inputs[:3]), *inputs[3:]), "swiglu")
        assert alone.equal(whole[token : token + 1])


@pytest.mark.parametrize("tokens", [1, 2, 3, 40])
def test_few_slots_and_many_agree(tokens: int) -> None:
    inputs = given((tokens, 2, 4, 24, 20), torch.float32)
    assert_close(mixture(*inputs), oracle(inputs, "swiglu"))
