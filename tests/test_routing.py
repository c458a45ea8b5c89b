"""``route``: shapes, what the result holds, the lost-gradient warning, and every bad input."""

import warnings
from typing import Any

import pytest
import torch

import moegate
from moegate import recipes, route
from moegate.records import count_assignments
from moegate.rule import RoutingRule
from moegate.selection import TopK

NAN = float("nan")


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 1, 3), (0, 4)])
def test_any_leading_shape_is_flattened_to_tokens(shape: tuple[int, ...]) -> None:
    logits = torch.randn(*shape, 8)
    routing = route(logits, recipes.mixtral())
    tokens = torch.Size(shape).numel()
    assert routing.batch_shape == shape and routing.num_tokens == tokens
    assert routing.expert_index.shape == routing.weights.shape == (tokens, 2)
    assert routing.logits.equal(logits.reshape(-1, 8))
    assert routing.expert_index.equal(route(logits.reshape(tokens, 8), recipes.mixtral()).expert_index)


def test_masks_may_be_flat_or_shaped() -> None:
    logits, mask = torch.randn(2, 3, 8), torch.tensor([[True, False, True], [False, True, True]])
    shaped, flat = (route(logits, recipes.mixtral(), token_mask=values) for values in (mask, mask.flatten()))
    assert shaped.expert_index.equal(flat.expert_index)


def test_the_inputs_are_left_as_they_were() -> None:
    logits, bias = torch.randn(6, 8), torch.randn(8)
    mask = torch.tensor([True] * 5 + [False])
    copies = logits.clone(), bias.clone(), mask.clone()
    rule = recipes.gshard(capacity_factor=0.5).replace(noise=moegate.noise.GumbelNoise())
    route(logits, rule, bias=bias, token_mask=mask, training=True)
    assert logits.equal(copies[0]) and bias.equal(copies[1]) and mask.equal(copies[2])


def test_edges_are_the_valid_assignments_in_order() -> None:
    routing = route(torch.randn(10, 4), recipes.gshard(capacity_factor=0.5))
    edges = routing.edges()
    expected = [
        (token, expert, weight)
        for token, (experts, weights) in enumerate(
            zip(routing.expert_index.tolist(), routing.weights.tolist(), strict=True)
        )
        for expert, weight in zip(experts, weights, strict=True)
        if expert >= 0
    ]
    assert list(zip(*(values.tolist() for values in edges), strict=True)) == expected
    assert edges.token.dtype == edges.expert.dtype == torch.int64 and edges.weight.dtype == torch.float32


def test_load_before_and_after_dropping() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0]] * 6)
    routing = route(logits, recipes.switch(capacity_factor=1.0))
    assert routing.selected_load.tolist() == [6, 0, 0] and routing.load.tolist() == [2, 0, 0]


def test_counting_ignores_empty_slots() -> None:
    assert count_assignments(torch.tensor([[-1, 2], [2, -1]]), 4).tolist() == [0, 0, 2, 0]
    assert count_assignments(torch.zeros(0, 3, dtype=torch.int64), 2).tolist() == [0, 0]


def test_probabilities_are_normalised_scores() -> None:
    logits = torch.tensor([[1.0, 0.0], [-1.0, -2.0], [NAN, 0.0], [0.0, 3.0]])
    mask = torch.tensor([True, True, True, False])
    routing = route(logits, RoutingRule(TopK(1), score=moegate.scoring.ReLU()), token_mask=mask)
    expected = torch.tensor([[1.0, 0.0], [0.5, 0.5], [NAN, NAN], [0.0, 0.0]])
    torch.testing.assert_close(routing.probabilities, expected, equal_nan=True)
    sigmoids = route(logits[:2], RoutingRule(TopK(1), score=moegate.scoring.Sigmoid()))
    torch.testing.assert_close(sigmoids.probabilities.sum(dim=1), torch.ones(2))


def test_what_was_selected_stays_on_record() -> None:
    routing = route(torch.randn(4, 5), recipes.mixtral())
    changed = routing.with_assignment(torch.full((4, 1), 3), torch.ones(4, 1))
    assert changed.selected_index is routing.selected_index and changed.load.tolist() == [0, 0, 0, 4, 0]


# --- a router that learns nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        RoutingRule(TopK(1), weighting=moegate.Weighting(renormalize=True, eps=1e-19)),
        RoutingRule(TopK(1), score=moegate.scoring.SoftmaxSelected(), weighting=moegate.Weighting(scale=1.1)),
        recipes.deepseek_v3(1, num_groups=2, groups_kept=1),
    ],
)
def test_one_weight_that_is_always_one_is_warned_of_once(rule: RoutingRule) -> None:
    logits = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        route(logits, rule)  # without training there is nothing to lose
    with pytest.warns(UserWarning, match=r"no gradient .* Choose Weighting\(renormalize=False\)") as caught:
        route(logits, rule, training=True)
        route(logits, rule, training=True)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize(
    "rule",
    [
        RoutingRule(TopK(1)),
        recipes.mixtral(2),
        recipes.llama4(),
        recipes.straight_through(1),
        recipes.gumbel_topk(1, relaxed=True),
        recipes.random_routing(1),
    ],
)
def test_other_rules_are_not(rule: RoutingRule) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        route(torch.randn(3, 4, requires_grad=True), rule, training=True)
    assert not caught


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (
            torch.ones(2, 4, dtype=torch.int64),
            TypeError,
            r"must be floating point, got torch.int64: pass the gate's raw",
        ),
        (torch.ones(2, 4, dtype=torch.bool), TypeError, "got torch.bool"),
        (torch.ones(2, 4, dtype=torch.complex64), TypeError, "got torch.complex64"),
        ([[1.0, 2.0]], TypeError, r"must be a tensor \[..., num_experts\], got list"),
        (torch.tensor(1.0), ValueError, r"at least one expert, got \(\)"),
        (torch.ones(3, 0), ValueError, r"at least one expert, got \(3, 0\)"),
    ],
)
def test_logits_that_are_none(logits: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        route(logits, recipes.mixtral())  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["mixtral", None, recipes.mixtral, TopK(2)])
def test_rules_that_are_none(rule: object) -> None:
    with pytest.raises(TypeError, match=r"rule must be a RoutingRule, such as moegate.recipes.mixtral\(\)"):
        route(torch.randn(2, 4), rule)  # type: ignore[arg-type]


META = {"device": "meta"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"token_mask": torch.ones(5, dtype=torch.bool)}, ValueError, r"the shape \(2, 3\) or \(6,\); got \(5,\)"),
        ({"token_mask": torch.ones(3, 2, dtype=torch.bool)}, ValueError, r"got \(3, 2\)"),
        ({"token_mask": torch.ones(2, 3, 1, dtype=torch.bool)}, ValueError, r"got \(2, 3, 1\)"),
        ({"token_mask": torch.ones(2, 3)}, TypeError, r"must be bool .* got torch.float32: .* attention_mask.bool\(\)"),
        ({"token_mask": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"token_mask": [[True] * 3] * 2}, TypeError, "token_mask must be a tensor, got list"),
        (
            {"token_mask": torch.ones(2, 3, dtype=torch.bool, **META)},
            ValueError,
            r"move it with token_mask.to\('cpu'\)",
        ),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must hold one value per expert, so the shape \(4,\); got \(5,\)"),
        ({"bias": torch.zeros(1, 4)}, ValueError, r"got \(1, 4\)"),
        ({"bias": torch.zeros(4, dtype=torch.int64)}, TypeError, r"floating-point tensor \[4\], got torch.int64"),
        ({"bias": [0.0] * 4}, TypeError, "got list"),
        ({"bias": torch.zeros(4, **META)}, ValueError, "bias is on meta and the logits are on cpu"),
        ({"expert_scale": torch.ones(3)}, ValueError, "expert_scale must hold one value per expert"),
        ({"noise_scale": torch.ones(2, 4)}, ValueError, r"shaped like the logits, \(2, 3, 4\); got \(2, 4\)"),
        ({"noise_scale": torch.ones(2, 3, 4, **META)}, ValueError, "noise_scale is on meta"),
        ({"token_ids": torch.zeros(2, 3)}, TypeError, "token_ids must be integers, got torch.float32"),
        ({"token_ids": torch.zeros(2, 4, dtype=torch.int64)}, ValueError, "token_ids must have one value per token"),
        ({"token_ids": torch.zeros(2, 3, dtype=torch.int64, **META)}, ValueError, "token_ids is on meta"),
        ({"generator": 1.5}, TypeError, "generator must be a torch.Generator, an integer seed or None, got float"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        route(torch.randn(2, 3, 4), recipes.mixtral(), **arguments)


@pytest.mark.parametrize("recipe", ["mixtral", "soft_moe"])
def test_a_routing_without_its_graph(recipe: str) -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    routing = moegate.route(logits, moegate.recipes.get(recipe)())
    detached = routing.detach().to("cpu")
    assert routing.weights.requires_grad and not detached.weights.requires_grad
    assert detached.weights.equal(routing.weights) and detached.batch_shape == routing.batch_shape
    if routing.slots is not None:
        assert not detached.slots.combine.requires_grad
