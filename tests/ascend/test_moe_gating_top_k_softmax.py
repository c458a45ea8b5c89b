"""``npu_moe_gating_top_k_softmax`` and ``_v2`` against the goldens."""

import inspect
from collections.abc import Callable

import golden_gating as golden
import numpy as np
import pytest
import torch
from gating_inputs import DTYPES, PATTERNS, assert_index, assert_weights, logits, widened
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moegate.ascend import MOEGATE, Compat, npu_moe_gating_top_k_softmax, npu_moe_gating_top_k_softmax_v2

Gate = Callable[..., tuple[Tensor, Tensor, Tensor]]
# Rows, experts and k of the published benchmark cases, and some odd ones.
SHAPES = (
    (64, 8, 2),
    (17, 256, 8),
    (16, 32, 4),
    (9, 4, 2),
    (12, 16, 1),
    (7, 64, 8),
    (3, 200, 9),
    (1, 1256, 5),
    (5, 1, 1),
)


def v1(x: Tensor, *, k: int, finished: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return npu_moe_gating_top_k_softmax(x, finished, k)


BOTH = pytest.mark.parametrize("gate", [v1, npu_moe_gating_top_k_softmax_v2], ids=["v1", "v2"])


def assert_golden(gate: Gate, x: Tensor, k: int, renorm: int = 0) -> None:
    y, index, _ = gate(x, k=k) if renorm == 0 else gate(x, k=k, renorm=renorm)
    expected = golden.moe_gating_top_k_softmax(widened(x), k, renorm=renorm)
    assert_index(index, expected, least_certain=0.5)
    assert_weights(y, expected, x.dtype)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "num_experts", "k"), SHAPES)
def test_shapes_and_dtypes(num_rows: int, num_experts: int, k: int, dtype: torch.dtype, gate: Gate) -> None:
    assert_golden(gate, logits("normal", num_rows, num_experts, dtype), k)


@pytest.mark.parametrize("renorm", [0, 1])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_and_infinities(dtype: torch.dtype, pattern: str, renorm: int) -> None:
    assert_golden(npu_moe_gating_top_k_softmax_v2, logits(pattern, 9, 64, dtype), 8, renorm)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_random_legal_arguments(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 300))
    pattern, dtype = data.draw(st.sampled_from(sorted(PATTERNS))), data.draw(st.sampled_from(DTYPES))
    x = logits(pattern, data.draw(st.integers(1, 4)), num_experts, dtype, data.draw(st.integers(0, 2**20)))
    y, index, softmax = npu_moe_gating_top_k_softmax_v2(
        x, k=data.draw(st.integers(1, num_experts)), renorm=(renorm := data.draw(st.integers(0, 1)))
    )
    expected = golden.moe_gating_top_k_softmax(widened(x), y.shape[-1], renorm=renorm)
    assert_index(index, expected, least_certain=0.0)
    assert_weights(y, expected, dtype)
    assert softmax.shape == (0,)


@BOTH
def test_three_dimensions_are_rows(gate: Gate) -> None:
    x, finished = torch.randn(3, 5, 16), torch.rand(3, 5) > 0.5
    y, index, third = gate(x, k=4, finished=finished)
    flat_y, flat_index, flat_third = gate(x.reshape(15, 16), k=4, finished=finished.reshape(15))
    assert y.shape == index.shape == (3, 5, 4)
    assert torch.equal(y.reshape(15, 4), flat_y)
    assert torch.equal(index.reshape(15, 4), flat_index)
    assert torch.equal(third.reshape(-1), flat_third.reshape(-1))


@BOTH
def test_finished_changes_the_index_to_the_number_of_experts_and_nothing_else(gate: Gate) -> None:
    x, finished = torch.randn(6, 8), torch.tensor([False, True] * 3)
    y, index, third = gate(x, k=2, finished=finished)
    plain_y, plain_index, plain_third = gate(x, k=2)
    assert torch.equal(y, plain_y)
    assert torch.equal(third, plain_third)
    assert torch.equal(index[::2], plain_index[::2])
    assert index[1::2].tolist() == [[8, 8]] * 3
    assert index.dtype == torch.int32


@BOTH
def test_finished_as_moegate_masks(gate: Gate) -> None:
    x, finished = torch.randn(4, 8), torch.tensor([False, True, False, True])
    function = npu_moe_gating_top_k_softmax if gate is v1 else npu_moe_gating_top_k_softmax_v2
    y, index, _ = function(x, k=2, finished=finished, compat=Compat(finished="empty"))
    assert index[1::2].tolist() == [[-1, -1]] * 2
    assert y[1::2].tolist() == [[0.0, 0.0]] * 2
    assert torch.equal(y[::2], gate(x, k=2)[0][::2])


@pytest.mark.parametrize(("num_rows", "k"), [(1, 1), (5, 3), (3, 5)])
def test_row_idx_is_numbered_by_column(num_rows: int, k: int) -> None:
    row_idx = npu_moe_gating_top_k_softmax(torch.randn(num_rows, 8), k=k)[2]
    assert row_idx.tolist() == golden.row_idx(num_rows, k).tolist()
    assert row_idx.dtype == torch.int32
    assert row_idx.is_contiguous()


def test_row_idx_by_row() -> None:
    row_idx = npu_moe_gating_top_k_softmax(torch.randn(2, 8), k=3, compat=MOEGATE)[2]
    assert row_idx.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_softmax(dtype: torch.dtype) -> None:
    x = logits("normal", 6, 64, dtype).reshape(2, 3, 64)
    softmax = npu_moe_gating_top_k_softmax_v2(x, k=2, output_softmax=True)[2]
    assert softmax.shape == x.shape
    assert softmax.dtype == torch.float32
    np.testing.assert_allclose(softmax.numpy(), golden.scores_of(widened(x), 0), rtol=1e-6)


@pytest.mark.parametrize(
    "given", [{}, {"renorm": 1, "output_softmax": True}, {"renorm": None, "output_softmax": None}], ids=str
)
def test_the_third_output_is_empty_otherwise(given: dict[str, int | None]) -> None:
    softmax = npu_moe_gating_top_k_softmax_v2(torch.randn(3, 8, dtype=torch.float16), k=2, **given)[2]
    assert softmax.shape == (0,)
    assert softmax.dtype == torch.float32


def test_saturated_probabilities_tie() -> None:
    x = torch.tensor([[-200.0, 0.0, -190.0, -180.0]])
    assert npu_moe_gating_top_k_softmax(x, k=3)[1].tolist() == [[1, 0, 2]]
    assert npu_moe_gating_top_k_softmax_v2(x, k=3, renorm=1)[1].tolist() == [[1, 3, 2]]


@BOTH
@pytest.mark.parametrize(("shape", "k"), [((3, 8), 0), ((0, 8), 2), ((0, 4, 8), 2), ((2, 0, 8), 2), ((3, 0), 0)])
def test_empty_results(shape: tuple[int, ...], k: int, gate: Gate) -> None:
    y, index, _ = gate(torch.zeros(shape, dtype=torch.bfloat16), k=k)
    assert y.shape == index.shape == (*shape[:-1], k)
    assert y.dtype == torch.bfloat16
    assert index.dtype == torch.int32


def test_empty_row_idx() -> None:
    assert npu_moe_gating_top_k_softmax(torch.zeros(0, 8), k=2)[2].shape == (0, 2)
    assert npu_moe_gating_top_k_softmax(torch.zeros(3, 8), k=0)[2].shape == (3, 0)


@pytest.mark.parametrize("renorm", [0, 1])
def test_gradient_against_finite_differences(renorm: int) -> None:
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    finished = torch.tensor([[True, False, False], [False, False, True]])

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        y, _, softmax = npu_moe_gating_top_k_softmax_v2(x, k=3, finished=finished, renorm=renorm, output_softmax=True)
        return (y, softmax) if renorm == 0 else (y,)

    assert torch.autograd.gradcheck(outputs, x)


def test_gradient_of_version_one_in_bfloat16() -> None:
    x = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    npu_moe_gating_top_k_softmax(x, k=2)[0].float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert bool(x.grad.any())


def test_the_signatures_are_the_operators() -> None:
    first = inspect.signature(npu_moe_gating_top_k_softmax).parameters.values()
    assert [(p.name, p.default) for p in first if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        ("x", inspect.Parameter.empty), ("finished", None), ("k", 1),
    ]  # fmt: skip
    second = inspect.signature(npu_moe_gating_top_k_softmax_v2).parameters.values()
    assert [p.name for p in second if p.kind is p.POSITIONAL_OR_KEYWORD] == ["x"]
    keywords = [(p.name, p.default) for p in second if p.kind is p.KEYWORD_ONLY]
    assert keywords[:4] == [("k", 1), ("finished", None), ("renorm", 0), ("output_softmax", False)]
