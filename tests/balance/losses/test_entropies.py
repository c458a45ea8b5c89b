"""Entropies against NumPy, and their extremes."""

import math

import numpy as np
import pytest
import torch

import moegate
from moegate.balance.losses import marginal_entropy, mutual_information, token_entropy


def entropy(shares: np.ndarray) -> np.ndarray:
    return -np.sum(np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0), axis=-1)


def test_equals_numpy() -> None:
    logits, mask = 3 * torch.randn(33, 7), torch.rand(33) < 0.6
    routing = moegate.route(logits, moegate.recipes.switch(), token_mask=mask)
    shares = logits[mask].double().softmax(-1).numpy()
    token, marginal = entropy(shares).mean(), entropy(shares.mean(0))
    assert token_entropy(routing).item() == pytest.approx(token, rel=1e-5)
    assert marginal_entropy(routing).item() == pytest.approx(marginal, rel=1e-5)
    assert mutual_information(routing).item() == pytest.approx(marginal - token, rel=1e-4)


@pytest.mark.parametrize(
    ("logits", "token", "marginal"),
    [
        (torch.zeros(4, 4), math.log(4), math.log(4)),  # indifferent
        (200 * torch.eye(4), 0.0, math.log(4)),  # certain and even: probabilities of exactly 0 among them
        (200 * torch.eye(4)[[0, 0, 0, 0]], 0.0, 0.0),  # collapsed
    ],
)
def test_extremes(logits: torch.Tensor, token: float, marginal: float) -> None:
    routing = moegate.route(logits.requires_grad_(), moegate.recipes.switch())
    assert token_entropy(routing).item() == pytest.approx(token, abs=1e-6)
    assert marginal_entropy(routing).item() == pytest.approx(marginal, abs=1e-6)
    mutual_information(routing).backward()
    assert torch.isfinite(logits.grad).all()


def test_of_sigmoid_scores_are_those_of_the_normalised_scores() -> None:
    logits = torch.randn(20, 8)
    routing = moegate.route(logits, moegate.recipes.deepseek_v3(top_k=2, num_groups=1, groups_kept=1))
    scores = 1 / (1 + np.exp(-logits.double().numpy()))
    expected = entropy(scores / scores.sum(1, keepdims=True)).mean()
    assert token_entropy(routing).item() == pytest.approx(expected, rel=1e-5)
