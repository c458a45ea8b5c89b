"""Noise: its distribution in training, and none of it in evaluation."""

import pytest
import torch

import moegate
from moegate.noise import GaussianNoise, GumbelNoise, InputJitter, LearnedNoise
from moegate.rule import RoutingRule
from moegate.selection import TopK


def test_gumbel_top_1_samples_from_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    for scale in (1.0, 2.0):
        rule = RoutingRule(TopK(1), noise=GumbelNoise(scale))
        index = moegate.route(logits.expand(40_000, 4), rule, training=True).expert_index
        frequency = torch.bincount(index.flatten(), minlength=4) / 40_000
        torch.testing.assert_close(frequency, (logits / scale).softmax(dim=0), atol=6 * 0.5 / 200, rtol=0)


def test_gumbel_top_2_samples_without_replacement() -> None:
    """P(i, then j) = p_i p_j / (1 - p_i), the Plackett-Luce law."""
    shares = torch.tensor([0.5, 0.3, 0.2])
    index = moegate.route(shares.log().expand(40_000, 3), moegate.recipes.gumbel_topk(2), training=True).expert_index
    frequency = torch.bincount(index[:, 0] * 3 + index[:, 1], minlength=9).view(3, 3) / 40_000
    expected = shares[:, None] * shares[None, :] / (1 - shares[:, None])
    torch.testing.assert_close(frequency, expected.fill_diagonal_(0.0), atol=6 * 0.5 / 200, rtol=0)


def test_gumbel_moments() -> None:
    drawn = GumbelNoise(2.0).on_logits(torch.zeros(200, 1000), None, None).double()
    assert float(drawn.mean()) == pytest.approx(2 * 0.5772157, abs=0.03)
    assert float(drawn.std()) == pytest.approx(2 * 1.2825498, abs=0.03)
    assert bool(drawn.isfinite().all())


def test_gaussian_moments() -> None:
    drawn = GaussianNoise(0.3).on_logits(torch.full((200, 1000), 5.0), None, None)
    assert float(drawn.mean()) == pytest.approx(5.0, abs=6 * 0.3 / 447)
    assert float(drawn.std()) == pytest.approx(0.3, rel=0.01)


def test_learned_noise_has_the_standard_deviation_it_is_given() -> None:
    scale = torch.tensor([0.01, 0.5, 3.0]).expand(100_000, 3)
    logits = torch.tensor([1.0, 2.0, 3.0]).expand(100_000, 3)
    routing = moegate.route(logits, moegate.recipes.noisy_topk(), training=True, noise_scale=scale)
    assert routing.noisy_logits is not None and routing.noise_scale is not None
    difference = routing.noisy_logits - routing.logits
    torch.testing.assert_close(difference.std(dim=0), scale[0], rtol=0.02, atol=0)
    torch.testing.assert_close(difference.mean(dim=0), torch.zeros(3), rtol=0, atol=0.06)
    assert routing.logits.equal(logits)


def test_the_learned_scale_gets_a_gradient() -> None:
    scale = torch.full((50, 4), 0.5, requires_grad=True)
    routing = moegate.route(torch.randn(50, 4), moegate.recipes.noisy_topk(), training=True, noise_scale=scale)
    (grad,) = torch.autograd.grad(routing.weights[:, 0].sum(), scale)
    assert bool((grad != 0).any(dim=1).all())


def test_learned_noise_without_a_scale() -> None:
    with pytest.raises(ValueError, match="NoisyLinearGate"):
        moegate.route(torch.randn(2, 4), moegate.recipes.noisy_topk(), training=True)
    with pytest.raises(ValueError, match="NoisyLinearGate"):
        moegate.MoE(8, 8, 4, moegate.recipes.noisy_topk(), gate=moegate.gates.LinearGate(8, 4))


def test_a_layer_with_learned_noise_makes_its_gate() -> None:
    moe = moegate.MoE(8, 8, 4, moegate.recipes.noisy_topk())
    assert isinstance(moe.gate, moegate.gates.NoisyLinearGate)
    assert moe(torch.randn(2, 8))[1].noise_scale is not None


def test_fixed_noise_says_its_standard_deviation() -> None:
    rule = moegate.recipes.topk(2, noise_std=0.3)
    assert moegate.route(torch.randn(2, 4), rule, training=True).noise_scale.eq(0.3).all()
    assert moegate.route(torch.randn(2, 4), rule).noise_scale is None


@pytest.mark.parametrize(
    ("scale", "error"),
    [(torch.ones(3, 4), ValueError), (torch.ones(2, 4, dtype=torch.int64), TypeError), (0.5, TypeError)],
)
def test_a_scale_that_does_not_fit(scale: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="noise_scale must be"):
        moegate.route(torch.randn(2, 4), moegate.recipes.noisy_topk(), training=True, noise_scale=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_jitter_stays_within_its_bounds(dtype: torch.dtype) -> None:
    hidden = torch.ones(100, 100, dtype=dtype)
    ratio = InputJitter(0.125).on_hidden(hidden, None).double()
    assert 0.875 <= float(ratio.min()) < 0.88 and 1.12 < float(ratio.max()) <= 1.125
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.005)


def test_experts_do_not_see_the_jitter() -> None:
    """With one expert the weight is 1, so that a jittered input would show in the output."""
    moe = moegate.MoE(8, 8, 1, moegate.recipes.switch(capacity_factor=None, jitter=0.5))
    hidden = torch.randn(5, 8)
    trained, routing = moe.train()(hidden)
    evaluated, _ = moe.eval()(hidden)
    assert trained.equal(evaluated)
    assert not routing.logits.equal(moe.gate(hidden))


@pytest.mark.parametrize("noise", [GaussianNoise(), GumbelNoise(), LearnedNoise(), InputJitter(0.1)])
def test_a_layer_in_evaluation_draws_nothing(noise: moegate.noise.Noise) -> None:
    moe = moegate.MoE(8, 8, 4, RoutingRule(TopK(2), noise=noise), gate=moegate.gates.NoisyLinearGate(8, 4)).eval()
    hidden, generator = torch.randn(5, 8), torch.Generator().manual_seed(3)
    before, default = generator.get_state(), torch.get_rng_state()
    out, routing = moe(hidden, generator=generator)
    assert generator.get_state().equal(before) and torch.get_rng_state().equal(default)
    assert out.equal(moe(hidden)[0]) and routing.noisy_logits is None
    assert routing.logits.equal(moe.gate(hidden))


@pytest.mark.parametrize("noise", [GaussianNoise, GumbelNoise, InputJitter])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_sizes_that_are_none(noise: type[moegate.noise.Noise], value: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number greater than 0"):
        noise(value)  # type: ignore[call-arg]


@pytest.mark.parametrize("generator", ["seed", 1.5, True])
def test_generators_that_are_none(generator: object) -> None:
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator, an integer seed or None"):
        moegate.route(torch.randn(2, 4), moegate.recipes.gumbel_topk(), training=True, generator=generator)  # type: ignore[arg-type]
