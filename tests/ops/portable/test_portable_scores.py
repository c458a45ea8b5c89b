"""Scores with the same bits everywhere: against the reference, against NumPy's roundings, and near the exact values."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from triton_support import examples

from moegate.ops import library
from moegate.ops.portable import portable_exp, portable_log1p, portable_scores
from moegate.ops.portable.reference import PORTABLE_SCORES, portable_scores_reference

ISAS = library.available_isas()
SCORES = sorted(PORTABLE_SCORES)
SPECIAL = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45, -1e-45, 3e38, -3e38, -40.0, -40.000004, -104.0]
needs_kernels = pytest.mark.skipif(not ISAS, reason=f"needs the CPU kernels: {library.KERNELS.reason}")


def same_bits(a: Tensor, b: Tensor) -> None:
    np.testing.assert_array_equal(a.numpy(), b.numpy())  # NaN where NaN, of any payload


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("spread", [0.01, 2.0, 100.0])
def test_kernels_have_the_bits_of_the_reference(isa: str, score: str, spread: float) -> None:
    logits = torch.randn(61, 1009) * spread
    with library.forced_isa(isa):
        same_bits(portable_scores(logits, score), portable_scores_reference(logits, score))


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("score", SCORES)
@settings(max_examples=examples(40), deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_special_values(isa: str, score: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    size = data.draw(st.sampled_from([1, 2, 15, 16, 17, 40]))
    row = data.draw(st.lists(st.one_of(st.sampled_from(SPECIAL), st.floats(width=16)), min_size=size, max_size=size))
    logits = torch.tensor([row, row[::-1]], dtype=torch.float64).to(dtype)
    with library.forced_isa(isa):
        ours = portable_scores(logits.mT.contiguous().mT, score)
    same_bits(ours, portable_scores_reference(logits.float(), score))


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_a_softmax_over_65536(isa: str) -> None:
    """Its exponentials are added in another order than the reference's."""
    logits = torch.randn(2, 65536)
    with library.forced_isa(isa):
        same_bits(portable_scores(logits, "softmax"), portable_scores_reference(logits, "softmax"))


@pytest.mark.parametrize("score", SCORES)
def test_one_rounding_at_a_time(score: str) -> None:
    """NumPy rounds each operation once, too; a library's square root or a fused product would differ here."""
    f32 = np.float32
    z = (torch.randn(5, 4001) * 8).numpy()

    def exp(x: np.ndarray) -> np.ndarray:
        x = np.clip(x, f32(-104), f32(89))
        n = np.rint(x * f32(1.44269504088896341))
        r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
        p = np.full_like(r, f32(1.9875691500e-4))
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = p * r + f32(c)
        return np.ldexp((p * (r * r) + r) + f32(1), n.astype(np.int32))

    def log1p(u: np.ndarray) -> np.ndarray:
        s = u / (f32(2) + u)
        p = np.full_like(s, f32(0.14078889156761287))
        for c in (0.13982578878397325, 0.20012297614909472, 0.3333316082070072, 1.000000003840879):
            p = p * (s * s) + f32(c)
        return (f32(2) * s) * p

    small = exp(-np.abs(z))
    powers = exp(z - z.max(axis=1, keepdims=True))
    total = (np.rint(powers.astype(np.float64) * 2.0**36) * 2.0**-36).sum(axis=1, keepdims=True)
    expected = {
        "sigmoid": np.where(z >= 0, f32(1), small) / (f32(1) + small),
        "sqrt_softplus": np.where(z < -40, exp(z * f32(0.5)), np.sqrt(np.maximum(z, f32(0)) + log1p(small))),
        "softmax": powers / total.astype(f32),
    }[score]
    np.testing.assert_array_equal(portable_scores(torch.from_numpy(z), score).numpy(), expected)


@pytest.mark.parametrize("score", SCORES)
def test_close_to_the_exact_score(score: str) -> None:
    """3 ulp; the difference to a row's maximum is rounded first, so that of a softmax is that of this difference."""
    logits = torch.randn(50, 301) * 5
    wide = logits.double()
    shifted = (logits - logits.amax(1, keepdim=True)).double()
    exact = {
        "sigmoid": wide.sigmoid(),
        "sqrt_softplus": wide.exp().log1p().sqrt(),
        "softmax": shifted.exp() / shifted.exp().sum(1, keepdim=True),
    }[score]
    ours = portable_scores(logits, score).double()
    assert float(((ours - exact).abs() / exact).max()) < 3 * 2**-23


def test_parts_close_to_the_exact_functions() -> None:
    x, u = torch.linspace(-87, 0, 100_001), torch.linspace(0, 1, 100_001)
    assert float((portable_exp(x).double() / x.double().exp() - 1).abs().max()) < 2**-22
    ratio = portable_log1p(u)[1:].double() / u[1:].double().log1p()
    assert float((ratio - 1).abs().max()) < 2**-22


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 3, 5), (7,)])
def test_shapes(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape)
    for score in SCORES:
        assert portable_scores(logits, score).shape == shape
        same_bits(portable_scores(logits, score), portable_scores_reference(logits, score))


def test_float64_stays_float64_and_no_gradient_flows() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    scores = portable_scores(logits, "softmax")
    assert scores.dtype == torch.float64 and not scores.requires_grad
    torch.testing.assert_close(scores, logits.detach().softmax(-1))


def test_registration() -> None:
    torch.library.opcheck(torch.ops.moegate.portable_scores.default, (torch.randn(3, 20).mT, "softmax"))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="score must be one of softmax, sigmoid, sqrt_softplus; got 'relu'"):
        portable_scores(torch.zeros(2), "relu")
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor .* got torch\.int64"):
        portable_scores(torch.zeros(2, dtype=torch.int64), "sigmoid")
    with pytest.raises(ValueError, match=r"got \(\)"):
        portable_scores(torch.zeros(()), "sigmoid")


@needs_kernels
def test_bad_arguments_of_the_operator() -> None:
    operator = torch.ops.moegate.portable_scores
    with pytest.raises(RuntimeError, match="score must be softmax, sigmoid or sqrt_softplus; got 'relu'"):
        operator(torch.zeros(2), "relu")
    with pytest.raises(RuntimeError, match="logits must be float32, bfloat16 or float16, got Double"):
        operator(torch.zeros(2).double(), "sigmoid")
    with pytest.raises(RuntimeError, match="got no dimension"):
        operator(torch.zeros(()), "sigmoid")
