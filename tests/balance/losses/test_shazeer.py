"""Importance and load losses against NumPy, gradients against finite differences."""

import math

import numpy as np
import pytest
import torch

import moegate
from moegate.balance.losses import importance_cv, importance_load, load_cv, smooth_load
from moegate.records import Routing


def squared_cv(values: np.ndarray) -> float:
    return float(values.var() / values.mean() ** 2)


def noisy(logits: torch.Tensor, scale: torch.Tensor, top_k: int, mask: torch.Tensor | None = None) -> Routing:
    rule = moegate.recipes.noisy_topk(top_k=top_k)
    generator = torch.Generator().manual_seed(7)
    return moegate.route(logits, rule, token_mask=mask, training=True, noise_scale=scale, generator=generator)


def expected_load(routing: Routing, top_k: int, mask: np.ndarray) -> np.ndarray:
    """Sort the other experts' noisy logits for every token and expert: equation 9 as it is written."""
    clean, noise_scale = routing.logits.double().numpy(), routing.noise_scale.double().numpy()
    drawn = routing.noisy_logits.double().numpy()
    load = np.zeros(clean.shape[1])
    for token in np.flatnonzero(mask):
        for expert in range(clean.shape[1]):
            others = np.sort(np.delete(drawn[token], expert))[::-1]
            z = (clean[token, expert] - others[top_k - 1]) / noise_scale[token, expert]
            load[expert] += 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return load


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("dense", [False, True])
def test_importance(top_k: int, dense: bool) -> None:
    logits, mask = torch.randn(31, 5), torch.rand(31) < 0.7
    routing = moegate.route(logits, moegate.recipes.mixtral(top_k=top_k), token_mask=mask)
    importance = np.zeros(5)
    for token in np.flatnonzero(mask.numpy()):
        share = np.exp(logits[token].double().numpy())
        share /= share.sum()
        chosen = np.argsort(-share)[: 5 if dense else top_k]
        importance[chosen] += share[chosen] / share[chosen].sum()
    assert importance_cv(routing, dense=dense).item() == pytest.approx(squared_cv(importance), rel=1e-4)


def test_importance_at_balance_and_at_collapse() -> None:
    even = moegate.route(60 * torch.eye(4), moegate.recipes.switch())
    assert importance_cv(even).item() == pytest.approx(0.0, abs=1e-6)
    logits = torch.full((8, 6), -60.0)
    logits[:, :2] = 0.0
    collapsed = moegate.route(logits, moegate.recipes.mixtral(top_k=2))
    assert importance_cv(collapsed).item() == pytest.approx(6 / 2 - 1, rel=1e-5)
    assert importance_cv(collapsed, dense=True).item() == pytest.approx(6 / 2 - 1, rel=1e-5)


def test_equal_importance_is_not_equal_load() -> None:
    routing = moegate.route(torch.zeros(3, 2), moegate.recipes.mixtral(top_k=1))
    routing = routing.with_assignment(torch.tensor([[0], [1], [1]]), torch.tensor([[1.0], [0.5], [0.5]]))
    assert importance_cv(routing).item() == 0.0
    assert routing.load.tolist() == [1, 2]


# With one expert this rule gives the router no gradient, which is beside the point here.
@pytest.mark.filterwarnings("ignore:.*gives its one expert the weight 1")
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_smooth_load(top_k: int, masked: bool) -> None:
    mask = torch.rand(23) < 0.6 if masked else None
    routing = noisy(torch.randn(23, 5), torch.rand(23, 5) + 0.3, top_k, mask)
    expected = expected_load(routing, top_k, np.ones(23, bool) if mask is None else mask.numpy())
    np.testing.assert_allclose(smooth_load(routing).numpy(), expected, rtol=2e-5)
    assert load_cv(routing).item() == pytest.approx(squared_cv(expected), rel=1e-3)
    assert importance_load(routing).item() == (importance_cv(routing) + load_cv(routing)).item()


def test_smooth_load_predicts_the_load_over_many_draws() -> None:
    logits, scale = torch.randn(200, 4), torch.full((200, 4), 0.5)
    rule = moegate.recipes.noisy_topk(top_k=2)
    generator = torch.Generator().manual_seed(3)
    smooth, hard = torch.zeros(4), torch.zeros(4)
    for _ in range(200):
        routing = moegate.route(logits, rule, training=True, noise_scale=scale, generator=generator)
        smooth += smooth_load(routing)
        hard += routing.selected_load
    torch.testing.assert_close(smooth / hard, torch.ones(4), rtol=0.02, atol=0)


def test_all_experts_selected_is_certain() -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    routing = noisy(logits, torch.ones(6, 3), top_k=3)
    assert smooth_load(routing).tolist() == [6.0, 6.0, 6.0]
    load_cv(routing).backward()
    assert logits.grad is not None and logits.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [load_cv, importance_load, smooth_load])
def test_noise_that_is_not_normal_is_refused(loss) -> None:
    routing = moegate.route(torch.randn(4, 3), moegate.recipes.gumbel_topk(top_k=2), training=True)
    assert routing.noisy_logits is not None
    with pytest.raises(ValueError, match=r"noise that is not normal.*noisy_topk.*or use load_balance"):
        loss(routing)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, torch.full((23, 5), 0.7)])
def test_in_evaluation_the_load_is_the_hard_one(masked: bool, scale: torch.Tensor | None) -> None:
    """Nothing is drawn, so an expert's chance is 0 or 1; a constant, although the probabilities have a graph."""
    mask = torch.rand(23) < 0.6 if masked else None
    logits = torch.randn(23, 5, requires_grad=True)
    routing = moegate.route(logits, moegate.recipes.noisy_topk(top_k=2), token_mask=mask, noise_scale=scale)
    load = smooth_load(routing)
    assert load.dtype == torch.float32 and not load.requires_grad
    assert load.tolist() == routing.selected_load.tolist() and load.sum() == 2 * routing.real_tokens
    assert load_cv(routing).item() == pytest.approx(squared_cv(routing.selected_load.double().numpy()), rel=1e-5)
    (gradient,) = torch.autograd.grad(importance_load(routing), logits, retain_graph=True)
    (of_importance,) = torch.autograd.grad(importance_cv(routing), logits)
    assert gradient.any() and torch.equal(gradient, of_importance)


def test_evaluation_without_tokens_reads_zero() -> None:
    routing = moegate.route(torch.zeros(0, 4), moegate.recipes.noisy_topk(top_k=2))
    assert load_cv(routing).item() == 0.0 and importance_load(routing).item() == 0.0


def test_a_layer_with_learned_noise_can_be_evaluated() -> None:
    gate = moegate.gates.NoisyLinearGate(8, 4)
    moe = moegate.MoE(8, 16, 4, moegate.recipes.noisy_topk(top_k=2), gate=gate)
    for training in (True, False):
        _, routing = moe.train(training)(torch.randn(20, 8))
        assert load_cv(routing).requires_grad == training
        assert torch.isfinite(importance_load(routing))


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_fixed_noise_has_a_smooth_load_too(top_k: int) -> None:
    """It is that of a learned noise of the same standard deviation, with the gradient through the clean logits."""
    score = moegate.scoring.Softmax()
    rule = moegate.RoutingRule(moegate.selection.TopK(top_k), score=score, noise=moegate.noise.GaussianNoise(std=0.4))
    logits, mask = torch.randn(23, 5, requires_grad=True), torch.rand(23) < 0.7
    routing = moegate.route(logits, rule, token_mask=mask, training=True, generator=7)
    assert routing.noise_scale is not None and (routing.noise_scale == torch.tensor(0.4)).all()
    np.testing.assert_allclose(
        smooth_load(routing).detach().numpy(), expected_load(routing.detach(), top_k, mask.numpy()), rtol=2e-5
    )
    (gradient,) = torch.autograd.grad(load_cv(routing), logits)
    assert gradient[mask].any() and not gradient[~mask].any() and torch.isfinite(gradient).all()


def test_gradients() -> None:
    mask = torch.tensor([True, True, False, True, True, True])
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(6, 5, dtype=torch.float64) + 0.5).requires_grad_()

    def loss(logits: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return load_cv(noisy(logits, scale, 2, mask))

    assert torch.autograd.gradcheck(loss, (logits, scale))
    rule = moegate.recipes.mixtral(top_k=2)
    for dense in (False, True):
        assert torch.autograd.gradcheck(
            lambda z, dense=dense: importance_cv(moegate.route(z, rule, token_mask=mask), dense=dense), logits
        )
