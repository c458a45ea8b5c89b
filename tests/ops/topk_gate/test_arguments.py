"""Bad arguments: sentences from the function, sentences from the operator below it, and never a crash."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from triton_support import ON_TRITON, examples

from moegate.ops import library
from moegate.ops.topk_gate import topk_gate
from moegate.ops.topk_gate.options import Mode, mode_of, options_for

GOOD: dict[str, Any] = {"top_k": 2, "score": "sigmoid"}
needs_kernels = pytest.mark.skipif(
    not (library.KERNELS.loaded or ON_TRITON), reason=f"needs kernels: {library.KERNELS.reason}"
)


@pytest.mark.parametrize(
    ("logits", "error", "sentence"),
    [
        ([[1.0]], TypeError, "logits must be a tensor of float32, .* got list"),
        (torch.ones(2, 6, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.randn(6), ValueError, r"logits must have the shape \[T, E\] .* got \(6,\)"),
        (torch.randn(2, 3, 6), ValueError, r"got \(2, 3, 6\)"),
        (torch.randn(2, 0), ValueError, "at least one expert"),
    ],
)
def test_logits(logits: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        topk_gate(logits, **GOOD)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"top_k": 0}, ValueError, "top_k=0 is out of range: choose from 1 to 6"),
        ({"top_k": 7}, ValueError, "top_k=7 is out of range: choose from 1 to 6"),
        ({"top_k": 2.0}, TypeError, "top_k must be an integer, got 2.0"),
        ({"top_k": True}, TypeError, "top_k must be an integer, got True"),
        ({"score": "tanh"}, ValueError, "score must be one of softmax, .*; got 'tanh'"),
        ({"group_score": "mean"}, ValueError, "group_score must be one of max, top2_sum; got 'mean'"),
        ({"rank_by": "size"}, ValueError, "rank_by must be one of logits, scores; got 'size'"),
        ({"index_dtype": torch.int16}, ValueError, "index_dtype must be one of torch.int64, torch.int32"),
        ({"num_groups": 4}, ValueError, "6 experts do not divide into num_groups=4 equal groups"),
        ({"num_groups": 0}, ValueError, "num_groups=0 is out of range: choose from 1 to 6"),
        ({"num_groups": 3, "groups_kept": 4}, ValueError, "groups_kept=4 is out of range: choose from 1 to 3"),
        ({"num_groups": 6, "groups_kept": 1}, ValueError, "top_k=2 exceeds the 1 experts of 1 groups of 1"),
        (
            {"num_groups": 6, "groups_kept": 6, "group_score": "top2_sum"},
            ValueError,
            "group_score='top2_sum' needs groups of at least 2 experts; these have 1",
        ),
        ({"eps": -1.0}, ValueError, "eps must not be negative or NaN, got -1.0"),
        ({"eps": float("nan")}, ValueError, "eps must not be negative or NaN"),
        ({"eps": "small"}, TypeError, "eps must be a number, got 'small'"),
        ({"scale": float("nan")}, ValueError, "scale must be a number, got NaN"),
        ({"scale": None}, TypeError, "scale must be a number, got None"),
        ({"bias_E": [0.0] * 6}, TypeError, r"bias must be a floating-point tensor \[6\], got list"),
        ({"bias_E": torch.zeros(6, dtype=torch.int32)}, TypeError, "got torch.int32"),
        ({"bias_E": torch.zeros(5)}, ValueError, r"bias must have the shape \(6,\), got \(5,\)"),
        ({"bias_E": torch.zeros(6, device="meta")}, ValueError, "bias is on meta and the logits are on cpu"),
        ({"token_mask_T": torch.ones(2)}, TypeError, r"token_mask must be a bool tensor \[2\], .* got torch.float32"),
        ({"token_mask_T": [True, True]}, TypeError, "got list"),
        (
            {"token_mask_T": torch.ones(3, dtype=torch.bool)},
            ValueError,
            r"token_mask must have the shape \(2,\), got \(3,\)",
        ),
    ],
)
def test_settings(changes: dict[str, Any], error: type[Exception], sentence: str) -> None:
    # What was right before is remembered; 2.0 equals 2, and True equals 1.
    for top_k in (1, 2):
        topk_gate(torch.randn(2, 6), **{**GOOD, "top_k": top_k})
    with pytest.raises(error, match=sentence):
        topk_gate(torch.randn(2, 6), **{**GOOD, **changes})


def test_a_mode_survives_its_bits() -> None:
    for bits in range(64):
        flags = [bool(bits >> place & 1) for place in range(6)]
        mode = Mode("identity", "relu", *flags)
        assert mode_of(mode.bits()) == mode
    for nonsense in (-1, 1 << 14, 6, 6 << 4):
        with pytest.raises(ValueError, match=f"mode={nonsense} does not describe a gate"):
            mode_of(nonsense)


# --- the operators themselves, called with anything ---------------------------------------------------------------

REFUSALS = (RuntimeError, ValueError, NotImplementedError, IndexError)  # ours, or the dispatcher's; and no crash
numbers = st.sampled_from([-(2**63), -(2**31), -1, 0, 1, 2, 3, 5, 8, 2**31, 2**62])
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool, torch.complex64]
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 5, 8]), min_size=0, max_size=3))
    tensor = torch.ones(shape).to(draw(dtypes))
    layout = draw(st.sampled_from(["plain", "expanded", "transposed", "meta"]))
    if layout == "expanded":
        return torch.ones(()).to(tensor.dtype).expand(shape)
    if layout == "meta":
        return tensor.to("meta")
    return tensor.mT if layout == "transposed" and len(shape) >= 2 else tensor


floats = st.sampled_from([0.0, -1.0, 1e-20, 2.5, float("inf"), float("nan")])
modes = st.one_of(numbers, st.integers(0, 2**14 - 1))


@needs_kernels
@settings(max_examples=examples(200), deadline=None, derandomize=True, database=None)
@given(data=st.data(), statistics=st.booleans())
def test_the_operators_never_crash(data: st.DataObject, statistics: bool) -> None:
    gate = torch.ops.moegate.topk_gate_statistics if statistics else torch.ops.moegate.topk_gate
    optional = st.one_of(st.none(), tensors())
    inputs = [data.draw(tensors()), data.draw(optional), data.draw(optional)]
    try:
        outputs = gate(
            *inputs, data.draw(numbers), data.draw(numbers), data.draw(numbers), data.draw(floats), data.draw(floats),
            data.draw(modes),
        )  # fmt: skip
    except REFUSALS as error:
        assert str(error)
    else:
        assert outputs[0].shape == outputs[1].shape


@needs_kernels
@settings(max_examples=examples(200), deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_the_operator_accepts_only_what_fits(data: st.DataObject) -> None:
    """Nearly right arguments, so that each check is reached."""
    good: list[Any] = [torch.randn(3, 8), torch.randn(8), torch.ones(3, dtype=torch.bool), 2, 4, 2, 1e-20, 1.0, 0x22]
    place = data.draw(st.integers(0, len(good) - 1))
    wrong = st.one_of(tensors(), st.none()) if 0 < place < 3 else tensors() if place == 0 else numbers
    good[place] = data.draw(wrong if place not in (6, 7) else floats)
    try:
        weights, index = torch.ops.moegate.topk_gate(*good)
    except REFUSALS as error:
        assert str(error)
    else:
        assert weights.shape == index.shape == (good[0].shape[0], good[3])
        if not index.is_meta:
            assert bool(((index >= -1) & (index < good[0].shape[1])).all())


@needs_kernels
@settings(max_examples=examples(200), deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_the_gradient_accepts_only_what_fits(data: st.DataObject) -> None:
    good: list[Any] = [
        torch.randn(3, 2), torch.randn(3).double(), torch.randn(3, 2), torch.arange(6).view(3, 2),
        torch.randn(3, 2), torch.randn(3).double(), torch.randn(3, 8), 8, torch.float32, 1e-20, 1.0, 0,
    ]  # fmt: skip
    place = data.draw(st.integers(0, len(good) - 1))
    kinds: dict[int, Any] = {7: numbers, 8: dtypes, 9: floats, 10: floats, 11: modes}
    good[place] = data.draw(kinds.get(place, st.one_of(tensors(), st.none())))
    if isinstance(good[7], int) and good[7] > 2**32:
        good[7] = -good[7]  # a gradient of that size would be right, and does not fit into memory
    try:
        grad = torch.ops.moegate.topk_gate_backward(*good)
    except REFUSALS as error:
        assert str(error)
    else:
        assert grad.dtype == good[8] and grad.shape[1] == good[7]


@needs_kernels
@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (0, torch.randn(3, 8).double(), "logits must be float32, bfloat16 or float16, got .*."),
        (0, torch.randn(8), "logits must have 2 dimensions, got 1."),
        (1, torch.randn(7), "bias must hold one value for each of 8 experts, got 7."),
        (2, torch.ones(2, dtype=torch.bool), "token_mask must hold one value for each of 3 tokens, got 2."),
        (3, 9, "top_k=9 is out of range: choose from 1 to 8."),
        (4, 3, "8 experts do not divide into num_groups=3 equal groups."),
        (5, 5, "groups_kept=5 is out of range: choose from 1 to 4."),
        (6, -1.0, "eps must not be negative or NaN, got -1.*."),
        (7, float("nan"), "scale must be a number, got nan."),
        (8, 99999, "mode=99999 does not describe a gate: build it with moegate.ops.topk_gate."),
    ],
)
def test_sentences_of_the_operator(place: int, value: Any, sentence: str) -> None:
    inputs: list[Any] = [torch.randn(3, 8), torch.randn(8), torch.ones(3, dtype=torch.bool), 2, 4, 2, 1e-20, 1.0, 0x22]
    inputs[place] = value
    with pytest.raises((RuntimeError, ValueError), match=f"^{sentence}$".replace("[", r"\[")):
        torch.ops.moegate.topk_gate(*inputs)


def test_the_options_are_found_once() -> None:
    topk_gate(torch.randn(2, 6), **GOOD)
    before = options_for.cache_info().hits
    topk_gate(torch.randn(5, 6), **GOOD)
    assert options_for.cache_info().hits == before + 1
