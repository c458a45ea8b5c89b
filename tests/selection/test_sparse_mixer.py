"""SparseMixer against the function of transformers' own PhiMoE, and against its formula written out in loops."""

import math

import pytest
import torch
from torch import Tensor

import moegate
from moegate.recipes import phimoe


def transformers_sparsemixer(logits: Tensor, epsilon: float, training: bool) -> tuple[Tensor, Tensor]:
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    weights, index = sparsemixer(logits, jitter_eps=epsilon, training=training, top_k=2)
    return weights, index


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("tokens", "num_experts"), [(1, 4), (7, 8), (300, 16)])
def test_equals_transformers_draw_by_draw(tokens: int, num_experts: int, top_k: int, training: bool) -> None:
    logits = (torch.randn(tokens, num_experts) * 0.2 + 1.0).requires_grad_()
    torch.manual_seed(3)
    weights, index = transformers_sparsemixer(logits, 0.05, training)
    theirs_next = torch.rand(3)
    torch.manual_seed(3)
    routing = moegate.route(logits, phimoe(top_k, epsilon=0.05), training=training)
    assert routing.expert_index.equal(index[:, :top_k]) and routing.weights.equal(weights[:, :top_k])
    if top_k == 2:
        assert torch.rand(3).equal(theirs_next)
    salt = torch.randn(tokens, top_k)
    grads = [torch.autograd.grad((each * salt).sum(), logits)[0] for each in (routing.weights, weights[:, :top_k])]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_evaluation_equals_loops() -> None:
    logits, epsilon = torch.randn(60, 6, dtype=torch.float64), 0.3
    routing = moegate.route(logits, phimoe(3, epsilon=epsilon))
    for row, picks, weights in zip(
        logits.tolist(), routing.expert_index.tolist(), routing.weights.tolist(), strict=True
    ):
        left = set(range(6))
        for pick, weight in zip(picks, weights, strict=True):
            best = max(row[expert] for expert in left)
            near = [e for e in left if not (best - row[e]) / max(abs(row[e]), best) > 2 * epsilon]
            assert row[pick] == best
            total = sum(math.exp(row[expert] - best) for expert in near)
            assert weight == pytest.approx(1 / total, rel=1e-12)
            left.remove(pick)


def test_training_draws_by_the_softmax_over_those_that_stay() -> None:
    row = torch.tensor([1.0, 0.95, 0.92, 0.2])
    routing = moegate.route(row.expand(20000, 4), phimoe(2, epsilon=0.05), training=True, generator=0)
    near = row[:3].softmax(dim=0)
    shares = torch.bincount(routing.expert_index[:, 0], minlength=4) / 20000
    torch.testing.assert_close(shares, torch.cat([near, torch.zeros(1)]), atol=0.015, rtol=0)
    # After the first, 0.92 is near the second, and 0.2 near nothing.
    after_first = routing.expert_index[routing.expert_index[:, 0] == 0, 1]
    shares = torch.bincount(after_first, minlength=4) / after_first.numel()
    torch.testing.assert_close(
        shares, torch.cat([torch.zeros(1), row[1:3].softmax(dim=0), torch.zeros(1)]), atol=0.015, rtol=0
    )
    whole = near[routing.expert_index[:, 0]]
    share = routing.weights[:, 0] / whole
    is_best = routing.expert_index[:, 0] == 0
    torch.testing.assert_close(share[is_best], torch.ones(int(is_best.sum())))
    kept = (share[~is_best] - 1.0).abs() < 1e-5
    torch.testing.assert_close(share[~is_best][~kept], torch.full((int((~kept).sum()),), 0.3333), rtol=1e-4, atol=0)
    assert abs(kept.double().mean().item() - 0.25) < 0.015


def test_a_recorded_expert_that_is_far_now_still_learns() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, 0.0]], requires_grad=True)
    routing = moegate.route(logits, phimoe(), expert_index=torch.tensor([[2, -1]]))
    assert routing.expert_index.tolist() == [[2, -1]] and routing.weights[0, 1].item() == 0.0
    assert routing.weights[0, 0].item() == pytest.approx(math.exp(0.5) / (math.exp(0.5) + math.exp(3.0)))
    assert torch.autograd.grad(routing.weights.sum(), logits)[0][0, 2].item() > 0


def test_experts_at_minus_infinity_have_weight_zero_and_no_gradient() -> None:
    logits = torch.tensor([[1.0, float("-inf"), float("-inf")], [float("-inf")] * 3], requires_grad=True)
    routing = moegate.route(logits, phimoe())
    assert routing.expert_index.tolist() == [[0, 1], [0, 1]] and routing.weights.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert torch.autograd.grad(routing.weights.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize(("values", "message"), [({"top_k": 0}, "top_k"), ({"epsilon": 0.0}, "epsilon")])
def test_bounds(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moegate.selection.SparseMixer(**values)
    with pytest.raises(ValueError, match="exceeds the 2 experts"):
        moegate.route(torch.randn(1, 2), phimoe(3))
    with pytest.raises(ValueError, match="none can be rerouted"):
        phimoe().replace(capacity=moegate.Capacity(overflow="reroute"))
