"""The z-loss against NumPy."""

import numpy as np
import pytest
import torch

import moegate
from moegate.balance.losses import router_z


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_equals_numpy(scale: float) -> None:
    logits, mask = scale * torch.randn(4, 9, 6), torch.rand(4, 9) < 0.5
    rule = moegate.recipes.switch()
    squares = np.logaddexp.reduce(logits.double().numpy(), axis=-1) ** 2
    assert router_z(moegate.route(logits, rule)).item() == pytest.approx(squares.mean(), rel=1e-5)
    masked = moegate.route(logits, rule, token_mask=mask)
    assert router_z(masked).item() == pytest.approx(squares[mask.numpy()].mean(), rel=1e-5)


def test_reads_the_logits_before_noise() -> None:
    logits = torch.randn(9, 4)
    routing = moegate.route(logits, moegate.recipes.noisy_topk(), training=True, noise_scale=torch.ones(9, 4))
    assert routing.noisy_logits is not None and not torch.equal(routing.noisy_logits, logits)
    assert router_z(routing) == router_z(moegate.route(logits, moegate.recipes.switch()))


def test_shifting_the_logits_changes_it_and_nothing_else() -> None:
    logits = torch.randn(9, 4)
    rule = moegate.recipes.mixtral(top_k=2)
    near, far = moegate.route(logits, rule), moegate.route(logits + 16.0, rule)
    assert torch.equal(near.expert_index, far.expert_index)
    assert router_z(far) > 100 * router_z(near) / 10
