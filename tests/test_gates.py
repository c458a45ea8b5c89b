"""Gates: each against its formula in float64, and the state that conversions must not touch."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from triton_support import ON_TRITON

from moegate.gates import CosineGate, Gate, LinearGate, MLPGate, NoisyLinearGate, NormedGate, ResidualGate

HIDDEN, EXPERTS = 12, 5
GATES: dict[str, Callable[..., Gate]] = {
    "linear": LinearGate,
    "linear with bias": lambda *sizes, **options: LinearGate(*sizes, bias=True, **options),
    "noisy": NoisyLinearGate,
    "mlp": lambda *sizes, **options: MLPGate(*sizes, hidden_sizes=(7, 6), activation="tanh", **options),
    "cosine": lambda *sizes, **options: CosineGate(*sizes, projection_size=4, **options),
    "normed": NormedGate,
    "residual": ResidualGate,
}
every_gate = pytest.mark.parametrize("make", GATES.values(), ids=GATES.keys())


def randomized(gate: Gate) -> Gate:
    """No parameter at its start value, where a term could be missing without notice."""
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_(std=0.5)
    return gate


def array(values: Tensor) -> np.ndarray:
    return values.detach().double().numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def formula(gate: Gate, hidden: np.ndarray) -> np.ndarray:
    if isinstance(gate, MLPGate):
        for depth, (weight, bias) in enumerate(zip(gate.weights, gate.biases, strict=True)):
            hidden = (np.tanh(hidden) if depth else hidden) @ array(weight).T + array(bias)
        return hidden
    if isinstance(gate, CosineGate):
        cosine = unit(hidden @ array(gate.projection).T) @ unit(array(gate.weight)).T
        return cosine * math.exp(gate.log_scale.item())
    if isinstance(gate, NormedGate):
        root_mean_square = np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + 1e-6)
        return hidden / root_mean_square * array(gate.scale) / math.sqrt(HIDDEN) @ array(gate.weight).T
    assert isinstance(gate, LinearGate)
    return hidden @ array(gate.weight).T + (0.0 if gate.bias is None else array(gate.bias))


@every_gate
def test_the_logits_are_the_formula(make: Callable[..., Gate]) -> None:
    gate = randomized(make(HIDDEN, EXPERTS)).double()
    hidden = torch.randn(2, 3, HIDDEN, dtype=torch.float64)
    logits = gate(hidden)
    assert logits.dtype == torch.float64
    np.testing.assert_allclose(array(logits), formula(gate, hidden.numpy()), rtol=1e-10, atol=1e-12)


@every_gate
def test_gradients(make: Callable[..., Gate]) -> None:
    gate = randomized(make(HIDDEN, EXPERTS)).double()
    hidden = torch.randn(2, HIDDEN, dtype=torch.float64, requires_grad=True)
    parameters = tuple(parameter for name, parameter in gate.named_parameters() if "noise" not in name)
    used = tuple(parameter for parameter in parameters if parameter is not getattr(gate, "previous_weight", None))
    assert torch.autograd.gradcheck(lambda *inputs: gate(inputs[0]), (hidden, *used))


def test_the_noise_scale_is_its_formula() -> None:
    gate = randomized(NoisyLinearGate(HIDDEN, EXPERTS)).double()
    hidden = torch.randn(7, HIDDEN, dtype=torch.float64)
    expected = np.log1p(np.exp(hidden.numpy() @ array(gate.noise_weight).T)) + 0.01
    np.testing.assert_allclose(array(gate.noise_scale(hidden)), expected, rtol=1e-10)
    assert LinearGate(HIDDEN, EXPERTS).noise_scale(hidden) is None


def test_a_residual_gate_adds_the_map_of_the_previous_logits() -> None:
    gate = randomized(ResidualGate(HIDDEN, EXPERTS, previous_num_experts=3)).double()
    hidden, previous = torch.randn(2, 4, HIDDEN, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    expected = formula(gate, hidden.numpy()) + (previous.numpy() @ array(gate.previous_weight).T).reshape(2, 4, EXPERTS)
    np.testing.assert_allclose(array(gate(hidden, previous)), expected, rtol=1e-10)
    np.testing.assert_allclose(array(gate(hidden)), formula(gate, hidden.numpy()), rtol=1e-10)
    # The last has as many elements as it should: it must not be read in another order.
    for shape in ((8, 5), (4, 2, 3), (3, 8)):
        with pytest.raises(ValueError, match=r"previous_logits must be \(2, 4, 3\) or \(8, 3\), got"):
            gate(hidden, torch.randn(shape))


def test_a_residual_gate_starts_as_a_linear_one() -> None:
    gate, hidden = ResidualGate(HIDDEN, EXPERTS), torch.randn(6, HIDDEN)
    assert gate(hidden, torch.randn(6, EXPERTS)).equal(gate(hidden))


def test_the_temperature_of_a_cosine_gate_is_bounded() -> None:
    gate = CosineGate(HIDDEN, EXPERTS, projection_size=4)
    with torch.no_grad():
        gate.log_scale.fill_(50.0)
    assert float(gate(torch.randn(100, HIDDEN)).detach().abs().max()) <= 100.001
    assert bool(gate(torch.zeros(1, HIDDEN)).isfinite().all())


@every_gate
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_are_float32_whatever_the_model_is(make: Callable[..., Gate], dtype: torch.dtype) -> None:
    gate = randomized(make(HIDDEN, EXPERTS)).to(dtype)
    hidden = torch.randn(6, HIDDEN).to(dtype)
    logits = gate(hidden)
    assert logits.dtype == torch.float32
    wide = copy.deepcopy(gate).float()
    # Triton's product of narrow values adds in another order than PyTorch's of wide ones.
    torch.testing.assert_close(logits, wide(hidden.float()), rtol=0, atol=1e-6 if ON_TRITON else 0)


@every_gate
def test_autocast_does_not_narrow_the_gate(make: Callable[..., Gate]) -> None:
    gate, hidden = randomized(make(HIDDEN, EXPERTS)), torch.randn(6, HIDDEN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = gate(hidden)
    assert logits.equal(gate(hidden))
    noise = gate.noise_scale(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert noise is None or gate.noise_scale(hidden).equal(noise)


def test_a_narrow_gate_is_an_option() -> None:
    gate = LinearGate(HIDDEN, EXPERTS, float32=False).to(torch.bfloat16)
    hidden = torch.randn(64, HIDDEN).bfloat16()
    logits = gate(hidden)
    assert logits.dtype == torch.float32
    assert logits.equal(nn.functional.linear(hidden, gate.weight).float())


@every_gate
@pytest.mark.parametrize("convert", ["bfloat16", "half", "double", "float"])
def test_the_selection_bias_keeps_its_float32_values(make: Callable[..., Gate], convert: str) -> None:
    """1 + 2^-20 and steps of 1e-3 near 1 are lost in bfloat16, and a bias that is rounded once stays rounded."""
    values = torch.tensor([1 + 2**-20, -0.5 + 1e-3, 5.001, 1e-30, -1e5])
    parent = nn.Sequential(nn.Linear(2, 2), make(HIDDEN, EXPERTS, correction_bias=True))
    parent[1].e_score_correction_bias.copy_(values)
    before = parent[1].e_score_correction_bias
    getattr(parent, convert)()
    bias = parent[1].e_score_correction_bias
    assert bias.dtype == torch.float32 and bias.equal(values)
    assert bias is before or bias.data_ptr() == before.data_ptr()
    assert next(parent[1].parameters()).dtype == getattr(
        torch, {"half": "float16"}.get(convert, convert), torch.float32
    )


@every_gate
def test_the_state_survives_a_round_trip(make: Callable[..., Gate]) -> None:
    gate = randomized(make(HIDDEN, EXPERTS, correction_bias=True)).bfloat16()
    gate.e_score_correction_bias.normal_()
    other = make(HIDDEN, EXPERTS, correction_bias=True).bfloat16()
    other.load_state_dict(gate.state_dict())
    assert other.e_score_correction_bias.dtype == torch.float32
    hidden = torch.randn(5, HIDDEN).bfloat16()
    assert other.e_score_correction_bias.equal(gate.e_score_correction_bias) and other(hidden).equal(gate(hidden))


def test_a_narrow_checkpoint_does_not_narrow_the_selection_bias() -> None:
    gate = LinearGate(HIDDEN, EXPERTS, correction_bias=True)
    narrow = {name: torch.randn_like(value).bfloat16() for name, value in gate.state_dict().items()}
    for assign in (False, True):
        gate.load_state_dict(narrow, assign=assign)
        assert gate.e_score_correction_bias.dtype == torch.float32
        assert gate.e_score_correction_bias.equal(narrow["e_score_correction_bias"].float())


def test_without_a_bias_there_is_no_entry_in_the_state() -> None:
    gate = LinearGate(HIDDEN, EXPERTS)
    assert gate.e_score_correction_bias is None and list(gate.state_dict()) == ["weight"]


def test_the_bias_is_no_parameter() -> None:
    gate = LinearGate(HIDDEN, EXPERTS, correction_bias=True)
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    assert "e_score_correction_bias" in gate.state_dict()


@every_gate
@pytest.mark.parametrize(
    ("hidden", "error", "message"),
    [
        (torch.randn(3, HIDDEN + 1), ValueError, r"hidden must be \[..., 12\], got \(3, 13\)"),
        (torch.tensor(1.0), ValueError, r"hidden must be \[..., 12\], got \(\)"),
        (torch.ones(3, HIDDEN, dtype=torch.int64), TypeError, "floating-point tensor .* got torch.int64"),
        ([0.0] * HIDDEN, TypeError, "got list"),
    ],
)
def test_hidden_states_that_do_not_fit(
    make: Callable[..., Gate], hidden: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(HIDDEN, EXPERTS)(hidden)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LinearGate(0, 4), ValueError, "hidden_size must be at least 1"),
        (lambda: LinearGate(8, 2.0), TypeError, "num_experts must be an integer"),  # type: ignore[arg-type]
        (lambda: MLPGate(8, 4, activation="gleu"), ValueError, r"Did you mean 'gelu'\?"),
        (lambda: MLPGate(8, 4, hidden_sizes=(8, 0)), ValueError, "hidden_sizes must be at least 1"),
        (lambda: CosineGate(8, 4, temperature=0.0), ValueError, "temperature must be"),
        (lambda: CosineGate(8, 4, projection_size=0), ValueError, "projection_size must be at least 1"),
    ],
)
def test_sizes_that_are_none(make: Callable[[], Gate], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("length", ["3", 2.5, -1, float("nan")])
def test_the_length_of_a_bias_is_a_number_of_classes(length: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="correction_bias must be"):
        LinearGate(HIDDEN, EXPERTS, correction_bias=length)
    assert LinearGate(HIDDEN, EXPERTS, correction_bias=EXPERTS + 1).e_score_correction_bias.shape == (EXPERTS + 1,)
    assert LinearGate(HIDDEN, EXPERTS, correction_bias=False).e_score_correction_bias is None
