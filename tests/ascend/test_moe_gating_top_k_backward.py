"""``npu_moe_gating_top_k_backward`` against the published formula, finite differences, and the forward's gradient."""

import inspect

import numpy as np
import pytest
import torch
from gating_inputs import DTYPES
from torch import Tensor

from moegate.ascend import npu_moe_gating_top_k, npu_moe_gating_top_k_backward

SCORES = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
# Experts and k of the operator's published benchmark cases, with few rows.
CASES = ((192, 10), (256, 8), (384, 8), (193, 10), (191, 9), (2048, 10), (2, 1), (8, 8))


def published_formula(x_norm: Tensor, grad_y: Tensor, expert_idx: Tensor, scale: float, eps: float) -> np.ndarray:
    """The sigmoid's backward as CANN documents it, row by row in float64."""
    scores, grad = x_norm.double().numpy(), grad_y.double().numpy() * np.float64(np.float32(scale))
    result = np.zeros_like(scores)
    for row, experts in enumerate(expert_idx.long().numpy()):
        chosen = scores[row, experts]
        total = chosen.sum() + eps
        beta = (chosen / total * grad[row]).sum()
        for slot, expert in enumerate(experts):
            result[row, expert] += (grad[row, slot] - beta) / total
    return scores * (1 - scores) * result


@pytest.mark.parametrize(("num_experts", "k"), CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_published_sigmoid_formula(dtype: torch.dtype, num_experts: int, k: int) -> None:
    x_norm = torch.rand(11, num_experts) * 0.998 + 0.001
    expert_idx = x_norm.topk(k).indices.to(torch.int32)
    grad_y = torch.randn(11, k).to(dtype)
    ours = npu_moe_gating_top_k_backward(x_norm, grad_y, expert_idx, norm_type=1, routed_scaling_factor=2.5)
    assert ours.dtype == dtype
    expected = torch.from_numpy(published_formula(x_norm, grad_y, expert_idx, 2.5, 1e-20))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=2e-7)


def test_an_expert_that_is_named_twice_gets_both_gradients() -> None:
    x_norm, grad_y = torch.tensor([[0.5, 0.25]]), torch.tensor([[1.0, 3.0]])
    expert_idx = torch.tensor([[1, 1]], dtype=torch.int32)
    ours = npu_moe_gating_top_k_backward(x_norm, grad_y, expert_idx, norm_type=1, eps=0.5)
    expected = published_formula(x_norm, grad_y, expert_idx, 1.0, 0.5)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("norm_type", "renorm"), SCORES)
def test_finite_differences(norm_type: int, renorm: int) -> None:
    """Central differences of the forward's weights, along each logit."""
    given = {"norm_type": norm_type, "renorm": renorm, "routed_scaling_factor": 2.5, "eps": 0.01}
    x, grad_y = torch.randn(3, 9, dtype=torch.float64) * 2, torch.randn(3, 4, dtype=torch.float64)
    _, expert_idx, out = npu_moe_gating_top_k(x, 4, out_flag=True, **given)
    ours = npu_moe_gating_top_k_backward(out, grad_y, expert_idx, **given)
    step = 1e-6
    for expert in range(9):
        shift = torch.zeros_like(x)
        shift[:, expert] = step
        ahead, behind = (npu_moe_gating_top_k(x + sign * shift, 4, **given)[0] for sign in (1, -1))
        slope = ((ahead - behind) / (2 * step) * grad_y).sum(dim=-1)
        torch.testing.assert_close(ours[:, expert], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("norm_type", "renorm"), SCORES)
def test_it_is_what_the_forward_gives_by_itself(norm_type: int, renorm: int) -> None:
    given = {"norm_type": norm_type, "renorm": renorm, "routed_scaling_factor": 2.5}
    x = torch.randn(20, 64, requires_grad=True)
    y, expert_idx, out = npu_moe_gating_top_k(x, 6, out_flag=True, **given)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    ours = npu_moe_gating_top_k_backward(out, grad_y, expert_idx, **given)
    torch.testing.assert_close(ours, x.grad, rtol=1e-4, atol=1e-6)


def test_a_score_of_zero_has_no_slope() -> None:
    x_norm = torch.tensor([[0.0, 1.0]])
    ours = npu_moe_gating_top_k_backward(x_norm, torch.ones(1, 1), torch.tensor([[0]]), norm_type=2, eps=0.5)
    assert ours.tolist() == [[0.0, 0.0]]


def test_no_rows() -> None:
    empty = torch.zeros(0, 2)
    ours = npu_moe_gating_top_k_backward(torch.zeros(0, 8), empty, empty.to(torch.int32), norm_type=1)
    assert ours.shape == (0, 8)


def test_it_can_be_differentiated() -> None:
    x_norm = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    grad_y = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    expert_idx = torch.tensor([[0, 3], [4, 1]], dtype=torch.int32)
    for norm_type in (0, 1, 2):

        def backward(x_norm: Tensor, grad_y: Tensor, norm_type: int = norm_type) -> Tensor:
            return npu_moe_gating_top_k_backward(x_norm, grad_y, expert_idx, norm_type=norm_type)

        assert torch.autograd.gradcheck(backward, (x_norm, grad_y))


def test_the_signature_is_the_operators() -> None:
    parameters = list(inspect.signature(npu_moe_gating_top_k_backward).parameters.values())
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == ["x_norm", "grad_y", "expert_idx"]
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == {
        "renorm": 0, "norm_type": 0, "routed_scaling_factor": 1.0, "eps": 1e-20, "strict": False,
    }  # fmt: skip
