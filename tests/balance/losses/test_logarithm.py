"""The logarithmic form as published, and the proof that it does not balance."""

import math

import pytest
import torch

import moegate
from moegate.balance.losses import load_balance, load_cross_entropy


def published(gate_scores: list[float], expert_usage: list[int], batch_size: int, expert_num: int) -> float:
    """The article's listing, line by line."""
    total_loss = 0.0
    for i in range(expert_num):
        expert_prob = expert_usage[i] / batch_size
        gate_prob = 0.0
        for j in range(batch_size):
            gate_prob += gate_scores[j * expert_num + i]
        gate_prob /= batch_size
        total_loss += expert_prob * math.log(gate_prob + 1e-6)
    return -total_loss


@pytest.mark.parametrize("top_k", [1, 2])
def test_equals_the_published_listing(top_k: int) -> None:
    logits = torch.randn(20, 6)
    mask = torch.arange(20) < 14
    routing = moegate.route(logits, moegate.recipes.mixtral(top_k=top_k), token_mask=mask)
    scores = logits[:14].double().softmax(-1).flatten().tolist()
    usage = [int((routing.selected_index == expert).sum()) for expert in range(6)]
    assert load_cross_entropy(routing).item() == pytest.approx(published(scores, usage, 14, 6), rel=1e-5)


def test_balance_reads_worse_than_collapse() -> None:
    even = moegate.route(60 * torch.eye(4), moegate.recipes.switch())
    logits = torch.full((4, 4), -60.0)
    logits[:, 0] = 0.0
    collapsed = moegate.route(logits, moegate.recipes.switch())
    assert load_cross_entropy(even).item() == pytest.approx(math.log(4), abs=1e-5)
    assert load_cross_entropy(collapsed).item() == pytest.approx(0.0, abs=1e-5)


def test_its_gradient_feeds_the_busiest_expert_where_the_usual_loss_starves_it() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(8, 1).requires_grad_()
    routing = moegate.route(logits, moegate.recipes.switch())
    (log_form,) = torch.autograd.grad(load_cross_entropy(routing), logits, retain_graph=True)
    (usual,) = torch.autograd.grad(load_balance(routing), logits)
    assert (log_form[:, 0] < 0).all() and (log_form[:, 1:] > 0).all()  # descent raises the busy expert's logit
    assert (usual[:, 0] > 0).all() and (usual[:, 1:] < 0).all()
