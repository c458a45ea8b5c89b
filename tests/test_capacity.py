"""Capacity: the formula, the four drop orders and rerouting against slow simulations."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import moegate
from moegate.capacity import Capacity, capacity
from moegate.rule import RoutingRule
from moegate.selection import TopK

Slot = tuple[int, int]


@pytest.mark.parametrize(
    ("tokens", "experts", "factor", "top_k", "expected"),
    [
        (64, 8, 1.0, 1, 8),
        (64, 8, 1.25, 1, 10),
        (64, 8, 1.25, 2, 20),
        (100, 10, 1.1, 1, 11),  # binary arithmetic gives 12
        (10, 3, 0.3, 1, 1),
        (6, 2, 4 / 3, 1, 4),
        (7, 4, 1.0, 1, 2),
        (1, 8, 1.0, 1, 1),
        (0, 8, 1.0, 1, 1),
        (1000, 7, 0.7, 3, 300),
    ],
)
def test_the_formula(tokens: int, experts: int, factor: float, top_k: int, expected: int) -> None:
    assert capacity(tokens, experts, factor, top_k) == expected


def test_the_article_formula_is_the_case_of_one_expert_a_token() -> None:
    for tokens in range(0, 70, 3):
        for experts in (1, 2, 5, 8):
            exact = math.ceil(Fraction(tokens, experts) * Fraction(5, 4))
            assert capacity(tokens, experts, 1.25) == max(1, exact)


@pytest.mark.parametrize(("least", "multiple", "expected"), [(1, 1, 3), (4, 1, 4), (1, 8, 8), (9, 8, 16), (8, 8, 8)])
def test_rounding_up(least: int, multiple: int, expected: int) -> None:
    assert capacity(10, 4, 1.0, min_capacity=least, multiple_of=multiple) == expected


@pytest.mark.parametrize("factor", [1.0, 1.25, 1.1, 4 / 3, 1 / 3, 0.1, 1e-7, 100.0, 3])
@pytest.mark.parametrize(("least", "multiple"), [(1, 1), (4, 1), (1, 8), (5, 16)])
def test_the_tensor_form_equals_it(factor: float, least: int, multiple: int) -> None:
    counts = [0, 1, 2, 7, 63, 64, 65, 4096, 8191, 1_000_003]
    for experts, top_k in ((1, 1), (8, 2), (7, 3), (256, 8)):
        expected = [capacity(count, experts, factor, top_k, least, multiple) for count in counts]
        limit = Capacity(factor, min_capacity=least, multiple_of=multiple)
        ours = limit.limit_of_assignments(torch.tensor(counts) * top_k, experts)
        assert ours.tolist() == expected


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"num_experts": 0}, ValueError, "num_experts must be at least 1"),
        ({"capacity_factor": 0}, ValueError, "capacity_factor must be a finite number greater than 0, got 0"),
        ({"capacity_factor": -1.0}, ValueError, "greater than 0"),
        ({"capacity_factor": float("nan")}, ValueError, "greater than 0"),
        ({"capacity_factor": float("inf")}, ValueError, "finite"),
        ({"capacity_factor": "1.25"}, TypeError, "capacity_factor must be a number"),
        ({"min_capacity": -1}, ValueError, "min_capacity must not be negative, got -1"),
        ({"min_capacity": 1.5}, TypeError, "min_capacity must be an integer"),
        ({"multiple_of": 0}, ValueError, "multiple_of must be at least 1"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"num_tokens": -1}, ValueError, "num_tokens must be at least 0, got -1"),
        ({"num_tokens": 6.0}, TypeError, "num_tokens must be an integer"),
    ],
)
def test_bad_values(values: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        capacity(**{"num_tokens": 64, "num_experts": 8, "capacity_factor": 1.25, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factor": 0.0}, "capacity_factor must be"),
        ({"min_capacity": -1}, "min_capacity must not be negative"),
        ({"drop": "weights"}, "drop must be one of .* Did you mean 'weight'"),
        ({"overflow": "re-route"}, "overflow must be one of .* Did you mean 'reroute'"),
    ],
)
def test_bad_parts(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Capacity(**values)  # type: ignore[arg-type]


def service_order(drop: str, index: list[list[int]], weights: list[list[float]]) -> list[Slot]:
    """The slots ``(token, k)`` in the order in which they are given places."""
    tokens, slots = range(len(index)), range(len(index[0]))
    if drop == "weight":
        return sorted(((t, k) for t in tokens for k in slots), key=lambda slot: (-weights[slot[0]][slot[1]], slot))
    if drop == "batch_priority":
        by_token = sorted(tokens, key=lambda t: (-max(weights[t]), t))
        return [(t, k) for k in slots for t in by_token]
    return [(t, k) for k in slots for t in tokens]


def simulate(order: list[Slot], index: list[list[int]], limit: int) -> list[list[int]]:
    kept, load = [[-1] * len(row) for row in index], {}
    for token, slot in order:
        expert = index[token][slot]
        if expert >= 0 and load.get(expert, 0) < limit:
            load[expert] = load.get(expert, 0) + 1
            kept[token][slot] = expert
    return kept


def skewed(tokens: int, experts: int) -> Tensor:
    """Logits that prefer the first experts, so that much overflows; weights are all different."""
    return torch.randn(tokens, experts, dtype=torch.float64) - 0.5 * torch.arange(experts)


@pytest.mark.parametrize("drop", ["position", "weight", "batch_priority"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("factor", [0.25, 1.0, 1.25, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_dropping_against_a_simulation(drop: str, top_k: int, factor: float, masked: bool) -> None:
    logits = skewed(29, 6)
    mask = torch.rand(29) > 0.3 if masked else None
    plain = RoutingRule(TopK(top_k))
    free = moegate.route(logits, plain, token_mask=mask)
    limited = moegate.route(logits, plain.replace(capacity=Capacity(factor, drop=drop)), token_mask=mask)
    real = 29 if mask is None else int(mask.sum())
    limit = capacity(real, 6, factor, top_k)
    order = service_order(drop, free.expert_index.tolist(), free.weights.tolist())
    expected = simulate(order, free.expert_index.tolist(), limit)
    assert limited.expert_index.tolist() == expected
    assert limited.selected_index.equal(free.expert_index)
    assert int(limited.load.max()) <= limit
    kept = limited.expert_index >= 0
    assert limited.weights[kept].equal(free.weights[kept]) and not limited.weights[~kept].any()
    assert factor == 4.0 or not kept.all()


def test_ties_are_served_in_the_order_of_the_slots() -> None:
    for drop in ("position", "weight", "batch_priority"):
        rule = RoutingRule(TopK(1), capacity=Capacity(1.0, drop=drop))
        routing = moegate.route(torch.zeros(4, 2), rule)
        assert routing.expert_index.flatten().tolist() == [0, 0, -1, -1]


def test_by_position_the_first_choices_are_served_before_the_second() -> None:
    """As in GShard: the first token's second choice gives way to the last token's first."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    rule = RoutingRule(TopK(2), capacity=Capacity(1.0))
    assert moegate.route(logits, rule).expert_index.tolist() == [[0, -1], [1, 2], [1, 2]]


def test_random_order_is_fair_and_seeded() -> None:
    rule = RoutingRule(TopK(1), capacity=Capacity(1.0, drop="random"))
    logits = torch.tensor([[1.0, 0.0]]).expand(20, 2)
    kept = torch.zeros(20)
    for seed in range(400):
        routing = moegate.route(logits, rule, training=True, generator=seed)
        assert routing.load.tolist() == [10, 0]
        kept += (routing.expert_index[:, 0] >= 0).float()
    assert float((kept - 200).abs().max()) < 6 * 10  # six standard deviations of a fair coin
    first, again = (moegate.route(logits, rule, training=True, generator=3).expert_index for _ in range(2))
    assert first.equal(again)


def test_random_order_is_by_position_in_evaluation() -> None:
    rule = RoutingRule(TopK(1), capacity=Capacity(1.0, drop="random"))
    assert moegate.route(torch.zeros(4, 2), rule).expert_index.flatten().tolist() == [0, 0, -1, -1]


def reroute_slowly(
    index: list[list[int]], kept: list[list[int]], ranking: list[list[float]], order: list[Slot], limit: int
) -> list[list[int]]:
    """Slot by slot, in rounds: all who wait ask their best expert with room; it takes them in the order of service."""
    num_experts, result = len(ranking[0]), [list(row) for row in kept]
    for slot in range(len(index[0])):
        waiting = [t for t, k in order if k == slot and index[t][k] >= 0 and kept[t][k] < 0]
        while waiting:
            load = [sum(expert in row for row in result) for expert in range(num_experts)]
            asks: dict[int, int] = {}
            for token in waiting:
                open_to = [e for e in range(num_experts) if load[e] < limit and e not in result[token]]
                if open_to:
                    asks[token] = min(open_to, key=lambda e, token=token: (-ranking[token][e], e))
            still = []
            for token in waiting:
                if token in asks and load[asks[token]] < limit:
                    load[asks[token]] += 1
                    result[token][slot] = asks[token]
                elif token in asks:
                    still.append(token)
            waiting = still
    return result


@pytest.mark.parametrize("drop", ["position", "weight", "batch_priority"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
@pytest.mark.parametrize("masked", [False, True])
def test_rerouting_against_a_simulation(drop: str, top_k: int, factor: float, masked: bool) -> None:
    logits = skewed(23, 5)
    mask = torch.rand(23) > 0.3 if masked else None
    plain = RoutingRule(TopK(top_k))
    free = moegate.route(logits, plain, token_mask=mask)
    rule = plain.replace(capacity=Capacity(factor, drop=drop, overflow="reroute"))
    routing = moegate.route(logits, rule, token_mask=mask)
    limit = capacity(23 if mask is None else int(mask.sum()), 5, factor, top_k)
    index = free.expert_index.tolist()
    order = service_order(drop, index, free.weights.tolist())
    expected = reroute_slowly(index, simulate(order, index, limit), free.ranking.tolist(), order, limit)
    assert routing.expert_index.tolist() == expected
    assert int(routing.load.max()) <= limit
    placed = routing.expert_index >= 0
    gathered = routing.scores.gather(1, routing.expert_index.clamp(min=0))
    assert routing.weights[placed].equal(gathered[placed]) and not routing.weights[~placed].any()


def test_rerouted_tokens_find_room_while_there_is_any() -> None:
    rule = RoutingRule(TopK(1), capacity=Capacity(1.0, overflow="reroute"))
    routing = moegate.route(skewed(64, 8), rule)
    assert routing.load.tolist() == [8] * 8
    assert routing.selected_load.tolist() != [8] * 8


def test_rerouted_weights_are_renormalised_over_the_experts_that_are_asked() -> None:
    logits = torch.tensor([[3.0, 2.0, 0.0, 0.0]] * 2, dtype=torch.float64)
    rule = RoutingRule(
        TopK(2), weighting=moegate.Weighting(renormalize=True), capacity=Capacity(1.0, overflow="reroute")
    )
    routing = moegate.route(logits, rule)
    assert routing.expert_index.tolist() == [[0, 1], [2, 3]]
    torch.testing.assert_close(routing.weights[1], torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("name", ["top_p", "entropy_k", "relu", "hash_routing", "deepseek_v3"])
@pytest.mark.parametrize("overflow", ["drop", "reroute"])
def test_other_families_keep_within_it_too(name: str, overflow: str) -> None:
    rule = moegate.recipes.get(name)()
    rule = moegate.recipes.deepseek_v3(3, num_groups=4, groups_kept=2) if name == "deepseek_v3" else rule
    rule = rule.replace(capacity=Capacity(0.25, overflow=overflow))
    routing = moegate.route(torch.randn(40, 8), rule, token_ids=torch.arange(40))
    limit = capacity(40, 8, 0.25, routing.top_k)
    assert int(routing.load.max()) <= limit
    for row in routing.expert_index.tolist():
        experts = [expert for expert in row if expert >= 0]
        assert len(experts) == len(set(experts))
    assert int(routing.load.sum()) <= int(routing.selected_load.sum())


@pytest.mark.parametrize("name", ["expert_choice", "dense", "soft_moe"])
def test_no_capacity_for_families_that_load_all_alike(name: str) -> None:
    with pytest.raises(ValueError, match="capacity has no meaning"):
        moegate.recipes.get(name)().replace(capacity=Capacity())


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_routers_of_varying_k_share_out_the_assignments_they_made(factor):
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 2
    free = moegate.recipes.top_p(0.7)
    chosen = int(moegate.route(logits, free).load.sum())
    limited = moegate.route(logits, free.replace(capacity=moegate.Capacity(factor)))
    assert limited.load.max() == min(math.ceil(chosen / 8 * factor), int(limited.selected_load.max()))


def test_batch_priority_goes_by_how_sure_the_router_was() -> None:
    # Renormalised, both weights are 1; the second token is the surer one.
    rule = moegate.RoutingRule(
        selection=TopK(1),
        weighting=moegate.Weighting(renormalize=True),
        capacity=Capacity(1.0, drop="batch_priority"),
    )
    routing = moegate.route(torch.tensor([[0.1, 0.0], [9.0, 0.0]]), rule)
    assert routing.expert_index.tolist() == [[-1], [0]]


def test_rerouting_stays_within_what_the_selection_allows() -> None:
    reroute = Capacity(1.0, overflow="reroute")
    grouped = moegate.selection.GroupedTopK(1, num_groups=2, groups_kept=1, group_score="max")
    rule = RoutingRule(selection=grouped, capacity=reroute)
    routing = moegate.route(torch.tensor([[9.0, 8.0, 0.0, 0.0]] * 4), rule)
    assert routing.expert_index.flatten().tolist() == [0, 1, -1, -1]
    threshold = RoutingRule(
        selection=moegate.selection.Threshold(0.0, min_k=0), score=moegate.scoring.ReLU(), capacity=reroute
    )
    routing = moegate.route(torch.tensor([[2.0, -1.0], [2.0, -1.0]]), threshold)
    assert routing.expert_index.tolist() == [[0, -1], [-1, -1]]
    masked = moegate.route(torch.tensor([[2.0, -math.inf]] * 2), RoutingRule(selection=TopK(1), capacity=reroute))
    assert masked.expert_index.tolist() == [[0], [-1]]


def test_a_minimum_of_none() -> None:
    assert capacity(64, 8, 1.25, min_capacity=0) == 10
    assert capacity(0, 8, 1.25, min_capacity=0) == 1


@pytest.mark.parametrize("places", [1, 2, 4])
@pytest.mark.parametrize("training", [False, True])
def test_the_capacity_of_switch_transformers(places: int, training: bool) -> None:
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

    config = SwitchTransformersConfig(d_model=8, num_experts=4, expert_capacity=places, router_jitter_noise=0.0)
    router = SwitchTransformersTop1Router(config).train(training)
    one_hot, weights, logits = router(torch.randn(3, 10, 8))
    rule = RoutingRule(TopK(1), capacity=Capacity(places=places, scope="sequence"))
    routing = moegate.route(logits, rule, training=training)
    assert torch.nn.functional.one_hot(routing.expert_index + 1, 5)[:, 0, 1:].equal(one_hot.view(30, 4))
    kept = routing.expert_index >= 0
    assert 0 < int(kept.sum()) < 30
    torch.testing.assert_close(routing.weights[kept], weights.view(30, 1)[kept], rtol=1e-6, atol=0)


@pytest.mark.parametrize("drop", ["position", "weight", "batch_priority"])
@pytest.mark.parametrize("training", [False, True])
def test_a_sequence_has_places_of_its_own(drop: str, training: bool) -> None:
    logits, mask = torch.randn(3, 12, 4), torch.rand(3, 12) > 0.3
    limit = Capacity(0.8, drop=drop, scope="sequence", eval_factor=0.5)
    rule = RoutingRule(TopK(2), weighting=moegate.Weighting(renormalize=True), capacity=limit)
    whole = moegate.route(logits, rule, token_mask=mask, training=training)
    alone = [
        moegate.route(row, rule, token_mask=real, training=training) for row, real in zip(logits, mask, strict=True)
    ]
    assert whole.expert_index.equal(torch.cat([routing.expert_index for routing in alone]))
    assert whole.weights.equal(torch.cat([routing.weights for routing in alone]))
    factor = limit.factor if training else 0.5
    for routing, real in zip(alone, mask, strict=True):
        assert int(routing.load.max()) == capacity(int(real.sum()), 4, factor, top_k=2)
        assert limit.limit(int(real.sum()), 4, 2, training) == capacity(int(real.sum()), 4, factor, top_k=2)


def test_weights_after_dropping_are_those_of_what_is_left() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 0.0, 1.0]], requires_grad=True)
    rule = RoutingRule(
        TopK(2), weighting=moegate.Weighting(renormalize=True), capacity=Capacity(places=2, weigh="after")
    )
    routing = moegate.route(logits, rule)
    assert routing.expert_index.tolist() == [[0, 1], [0, 1], [-1, 2]]
    assert routing.selected_index.tolist() == [[0, 1], [0, 1], [0, 2]]
    torch.testing.assert_close(routing.weights.sum(dim=1), torch.ones(3))
    assert routing.weights[2].tolist() == [0.0, 1.0]
    assert torch.autograd.grad(routing.weights[:, 1].sum(), logits)[0].isfinite().all()


def test_places_count_instead_of_the_factor() -> None:
    assert Capacity(places=3).limit(1000, 2, 1) == 3 == Capacity(places=3).limit(1000, 2, 1, training=False)
    assert Capacity(places=3, eval_factor=2.0).limit(10, 2, 1, training=False) == 10
    assert Capacity(1.0, eval_factor=2.0).limit(10, 2, 1) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"places": 0}, "places"),
        ({"eval_factor": 0.0}, "eval_factor"),
        ({"scope": "token"}, "scope must be one of"),
        ({"weigh": "never"}, "weigh must be one of"),
        ({"scope": "sequence", "overflow": "reroute"}, "looks for room in the whole batch"),
        ({"weigh": "after", "overflow": "reroute"}, "looks for room in the whole batch"),
    ],
)
def test_what_is_no_capacity_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Capacity(**values)  # type: ignore[arg-type]
