"""Soft MoE against the formulas of its paper (Puigcerver et al., arXiv 2308.00951), one sequence at a time."""

import numpy as np
import pytest
import torch

import moegate
from moegate.dispatch import combine, dispatch


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def soft_moe(hidden: np.ndarray, logits: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """``Y = C f(D^T X)`` with ``D`` a softmax over tokens, ``C`` over slots, and a linear map an expert."""
    slots_in = softmax(logits, axis=0).T @ hidden
    per_expert = slots_in.reshape(len(matrices), -1, hidden.shape[1])
    slots_out = np.concatenate([rows @ matrix for rows, matrix in zip(per_expert, matrices, strict=True)])
    return softmax(logits, axis=1) @ slots_out


def ours(
    hidden: torch.Tensor,
    logits: torch.Tensor,
    matrices: torch.Tensor,
    rule: moegate.RoutingRule,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    routing = moegate.route(logits, rule, token_mask=mask)
    rows, plan = dispatch(hidden.reshape(-1, hidden.shape[-1]), routing)
    ends = plan.offsets.tolist()
    starts = [0, *ends[:-1]]
    mapped = [rows[start:end] @ matrix for start, end, matrix in zip(starts, ends, matrices, strict=True)]
    return combine(torch.cat(mapped), plan).view_as(hidden)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("masked", [False, True])
def test_against_the_paper(slots: int, scope: str, masked: bool) -> None:
    hidden, logits = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 4 * slots, dtype=torch.float64)
    matrices = torch.randn(4, 6, 6, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False], [True, True, True, True, True]]) if masked else None
    real = (torch.ones(2, 5, dtype=torch.bool) if mask is None else mask).numpy()
    if masked:
        hidden[~mask], logits[~mask] = 0.0, 77.0
    out = ours(hidden, logits, matrices, moegate.recipes.soft_moe(slots_per_expert=slots, scope=scope), mask)
    expected = np.zeros((2, 5, 6))
    if scope == "batch":
        expected[real] = soft_moe(hidden.numpy()[real], logits.numpy()[real], matrices.numpy())
    else:
        for b in range(2):
            expected[b, real[b]] = soft_moe(hidden.numpy()[b, real[b]], logits.numpy()[b, real[b]], matrices.numpy())
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_shares_sum_to_one() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    routing = moegate.route(torch.randn(2, 3, 8), moegate.recipes.soft_moe(slots_per_expert=2), token_mask=mask)
    assert routing.slots is not None and routing.num_experts == 4
    torch.testing.assert_close(routing.slots.dispatch.view(2, 3, 8).sum(dim=1), torch.tensor([[1.0] * 8, [0.0] * 8]))
    torch.testing.assert_close(routing.slots.combine.sum(dim=1), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(routing.weights.sum(dim=1), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))


def test_every_expert_has_the_same_work() -> None:
    routing = moegate.route(torch.randn(3, 7, 8), moegate.recipes.soft_moe(slots_per_expert=2))
    rows, plan = dispatch(torch.randn(21, 5), routing)
    assert plan.counts.tolist() == [6] * 4 and rows.shape == (24, 5)


def test_the_gradient_is_exact() -> None:
    hidden = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    rule = moegate.recipes.soft_moe(slots_per_expert=2)
    assert torch.autograd.gradcheck(lambda h, z, m: ours(h, z, m, rule, None), (hidden, logits, matrices))


def test_logits_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="a multiple of 3; the last dimension of logits is 8"):
        moegate.route(torch.randn(2, 8), moegate.recipes.soft_moe(slots_per_expert=3))


def test_a_bias_has_no_place() -> None:
    with pytest.raises(ValueError, match="leave bias and expert_scale None"):
        moegate.route(torch.randn(2, 8), moegate.recipes.soft_moe(), bias=torch.zeros(8))
