"""Losses on the router's rows."""

import numpy as np
import pytest
import torch

from moegate.balance.losses import row_cosine, row_orthogonality


def test_equal_numpy() -> None:
    weight = torch.randn(5, 12)
    rows = weight.double().numpy()
    gram = rows @ rows.T - np.eye(5)
    assert row_orthogonality(weight).item() == pytest.approx(np.abs(gram).sum(), rel=1e-5)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert row_cosine(weight).item() == pytest.approx(((unit @ unit.T - np.eye(5)) ** 2).mean(), rel=1e-5)


def test_equal_rows_are_the_worst_and_length_matters_to_one_only() -> None:
    same = torch.ones(4, 8)
    assert row_cosine(same).item() == pytest.approx(12 / 16)
    assert row_cosine(7 * same).item() == pytest.approx(12 / 16)
    assert row_orthogonality(7 * torch.eye(4, 8)).item() == pytest.approx(4 * 48)


@pytest.mark.parametrize("loss", [row_orthogonality, row_cosine])
def test_autocast_and_narrow_weights_are_computed_in_float32(loss) -> None:
    weight = torch.randn(16, 64, requires_grad=True)
    expected = loss(weight)
    (expected_gradient,) = torch.autograd.grad(expected, weight)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(weight)
        assert torch.is_autocast_enabled("cpu")
    (gradient,) = torch.autograd.grad(value, weight)
    assert value.dtype == torch.float32 and value.item() == expected.item()
    assert torch.equal(gradient, expected_gradient)
    narrow = weight.detach().bfloat16()
    assert loss(narrow).dtype == torch.float32
    assert loss(narrow).item() == loss(narrow.float()).item()


@pytest.mark.parametrize("loss", [row_orthogonality, row_cosine])
def test_gradients(loss) -> None:
    assert torch.autograd.gradcheck(loss, torch.randn(3, 6, dtype=torch.float64, requires_grad=True))
