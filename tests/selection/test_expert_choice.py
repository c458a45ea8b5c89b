"""Expert choice against a loop over the experts."""

import math

import pytest
import torch

import moegate


def brute_force(
    scores: list[list[float]], mask: list[bool], factor: float, segments: list[range]
) -> list[dict[int, float]]:
    """Per token, the experts that chose it with their scores."""
    num_experts = len(scores[0])
    chosen: list[dict[int, float]] = [{} for _ in scores]
    for segment in segments:
        real = [token for token in segment if mask[token]]
        room = max(1, math.ceil(round(len(real) * factor / num_experts, 9)))
        for expert in range(num_experts):
            ranked = sorted(real, key=lambda token, expert=expert: (-scores[token][expert], token))
            for token in ranked[:room]:
                chosen[token][expert] = scores[token][expert]
    return chosen


def as_dicts(routing: moegate.Routing) -> list[dict[int, float]]:
    rows = zip(routing.expert_index.tolist(), routing.weights.tolist(), strict=True)
    return [{e: w for e, w in zip(experts, weights, strict=True) if e >= 0} for experts, weights in rows]


@pytest.mark.parametrize("scope", ["batch", "sequence"])
@pytest.mark.parametrize("factor", [0.1, 1.0, 1.25, 2.0, 50.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_against_brute_force(scope: str, factor: float, masked: bool, tied: bool) -> None:
    logits = torch.randint(-1, 2, (3, 7, 5)).double() if tied else torch.randn(3, 7, 5, dtype=torch.float64)
    mask = torch.rand(3, 7) > 0.4 if masked else torch.ones(3, 7, dtype=torch.bool)
    mask[1] = ~torch.full((7,), masked)  # one sequence is padding throughout
    rule = moegate.recipes.expert_choice(capacity_factor=factor, scope=scope)
    routing = moegate.route(logits, rule, token_mask=mask if masked else None)
    segments = [range(21)] if scope == "batch" else [range(7 * b, 7 * b + 7) for b in range(3)]
    expected = brute_force(routing.scores.tolist(), mask.flatten().tolist(), factor, segments)
    assert as_dicts(routing) == expected
    assert routing.load.tolist() == [sum(e in row for row in expected) for e in range(5)]


def test_every_expert_is_equally_loaded() -> None:
    routing = moegate.route(torch.randn(64, 8), moegate.recipes.expert_choice(capacity_factor=2.0))
    assert routing.load.tolist() == [16] * 8


def test_the_view_is_as_wide_as_it_must_be() -> None:
    logits = torch.full((6, 3), -9.0)
    logits[0] = torch.tensor([9.0, 9.0, 9.0])
    logits[:, 2] = 0.0
    routing = moegate.route(logits, moegate.recipes.expert_choice(capacity_factor=0.5))
    assert routing.top_k == int((routing.expert_index >= 0).sum(dim=1).max())


def test_experts_compare_scores_not_logits() -> None:
    """Logits of different tokens have no common scale: the second token's are greater, its probabilities are not."""
    logits = torch.tensor([[5.0, 0.0], [20.0, 19.0]])
    routing = moegate.route(logits, moegate.recipes.expert_choice(capacity_factor=1.0))
    assert as_dicts(routing)[0].keys() == {0} and as_dicts(routing)[1].keys() == {1}


def test_a_later_token_changes_an_earlier_one() -> None:
    """The leak of the future that makes expert choice unfit for a causal model."""
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    later = torch.cat([logits, torch.tensor([[9.0, 0.0], [0.0, 9.0]])])
    rule = moegate.recipes.expert_choice(capacity_factor=0.5)
    assert as_dicts(moegate.route(logits, rule))[0]
    assert not as_dicts(moegate.route(later, rule))[0]


def test_nan_tokens_are_taken_last() -> None:
    logits = torch.randn(8, 2)
    logits[0] = float("nan")
    routing = moegate.route(logits, moegate.recipes.expert_choice(capacity_factor=1.5))
    assert routing.expert_index[0].tolist() == [-1] * routing.top_k


@pytest.mark.parametrize(("factor", "error"), [(0, ValueError), (-1.0, ValueError), ("2", TypeError)])
def test_a_factor_that_is_none(factor: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="capacity_factor must be"):
        moegate.recipes.expert_choice(capacity_factor=factor)


def test_an_unknown_scope() -> None:
    with pytest.raises(ValueError, match="scope must be one of batch, sequence; got 'sequences'"):
        moegate.recipes.expert_choice(scope="sequences")
