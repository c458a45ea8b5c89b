"""The probabilities that dynamic selections and metrics look at."""

import math

import torch

from moegate.probability import entropy, normalized


def test_a_row_without_any_score_becomes_uniform() -> None:
    shares = normalized(torch.tensor([[0.0, 0.0], [-0.0, 0.0], [3.0, 1.0]]))
    assert shares.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.75, 0.25]]


def test_nan_is_not_hidden() -> None:
    assert normalized(torch.tensor([[float("nan"), 1.0]])).isnan().all()


def test_entropies_by_hand() -> None:
    values = entropy(torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]))
    torch.testing.assert_close(values, torch.tensor([math.log(4), 0.0, math.log(2)]))
