"""Every router of the lab: it trains, and it looks ahead exactly if it says so."""

import warnings
from typing import Any

import pytest
import torch

from moegate import recipes, route
from moegate.lab.sweep import Axes, Cell, make_grid
from moegate.lab.training.balancing import STRATEGIES
from moegate.lab.training.building import build_model, routed_layers
from moegate.lab.training.loop import initial_state
from moegate.lab.training.routers import (
    combination_problem,
    largest_k,
    looks_ahead,
    make_rule,
    num_logits,
    router_names,
    router_spec,
)
from moegate.lab.training.step import train_step
from moegate.lab.training.tasks import make_task
from moegate.records import Routing

WANTED = (
    "topk", "switch", "gshard", "noisy_topk", "expert_choice", "hash", "random", "soft", "top_p", "entropy_k",
    "gumbel", "straight_through", "mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4",
    "olmoe", "st_moe", "relu", "all_experts", "phimoe", "zaya", "inkling",
)  # fmt: skip


def test_the_routers_that_a_user_may_expect_are_there() -> None:
    assert set(WANTED) <= set(router_names())
    assert len(router_names()) == len(set(router_names()))


@pytest.mark.parametrize("name", router_names())
@pytest.mark.parametrize("task", ["image", "text"])
def test_every_router_learns(name: str, task: str, tiny: Any) -> None:
    config = tiny(task, router=name)
    state, source = initial_state(config), make_task(config)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    for step in range(2):
        assert train_step(state, config, source.batch(step)).task < 20
    changed = {key for key, value in state.model.state_dict().items() if not torch.equal(value, before[key])}
    assert any("experts" in key for key in changed)
    fixed = {"hash", "random"}
    assert any(".gate.weight" in key for key in changed) == (name not in fixed)


@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("name", [name for name in router_names() if router_spec(name).uses_top_k])
def test_every_router_takes_every_k(name: str, top_k: int, tiny: Any) -> None:
    config = tiny("text", router=name, top_k=top_k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # renormalised weights at K = 1 warn; here only shapes count
        model = build_model(config)
        batch = make_task(config).batch(0)
        _, routings = model.eval()(batch.inputs, batch.token_ids)
    assert largest_k(config) == top_k
    if router_spec(name).fixed_k and routings[0].slots is None:
        assert int(routings[0].load.sum()) == batch.num_tokens * top_k


def assignments(routing: Routing, tokens: int) -> torch.Tensor:
    """Who goes where with what weight, of the first tokens, [tokens, E]; for soft routing, their share of the slots."""
    if routing.slots is not None:
        return routing.slots.dispatch[:tokens]
    table = torch.zeros(routing.num_tokens, routing.num_experts)
    index = routing.expert_index.clamp(min=0)
    return table.scatter_add(1, index, routing.weights.masked_fill(routing.expert_index < 0, 0.0))[:tokens]


@pytest.mark.parametrize("name", router_names())
def test_a_router_looks_ahead_exactly_if_it_says_so(name: str, tiny: Any) -> None:
    config = tiny("text", router=name, sequence_length=64)
    rule = make_rule(config)
    seen = False
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(1, 64, num_logits(config, rule), generator=generator) * 3
        changed = logits.clone()
        changed[:, 32:] = torch.randn(1, 32, logits.shape[-1], generator=generator) * 3
        ids = torch.arange(64).view(1, 64)
        first, second = (route(values, rule, token_ids=ids) for values in (logits, changed))
        seen = seen or not torch.allclose(assignments(first, 32), assignments(second, 32))
    assert seen == looks_ahead(rule)


def test_expert_choice_and_soft_routing_work_as_much_as_k_experts_a_token(tiny: Any) -> None:
    for top_k in (1, 2, 4):
        choice = make_rule(tiny("text", router="expert_choice", top_k=top_k))
        routing = route(torch.randn(4, 16, 8), choice)
        assert int(routing.load.sum()) == 4 * 16 * top_k
        soft = tiny("text", router="soft", top_k=top_k)
        assert num_logits(soft, make_rule(soft)) == 16 * top_k


def test_the_capacity_factor_replaces_that_of_the_recipe_and_nothing_else(tiny: Any) -> None:
    rule = make_rule(tiny(router="switch", capacity_factor=3.0))
    published = recipes.switch()
    assert rule.capacity is not None
    assert published.capacity is not None
    assert rule.capacity.factor == 3.0
    assert rule.replace(capacity=published.capacity) == published
    assert rule.capacity.min_capacity == published.capacity.min_capacity


def test_recipes_keep_their_names(tiny: Any) -> None:
    for name in recipes.names():
        assert router_spec(name) is not None
    assert make_rule(tiny(router="hash_routing")) == make_rule(tiny(router="hash"))


def test_noisy_routing_gets_its_gate(tiny: Any) -> None:
    layer = routed_layers(build_model(tiny(router="noisy_topk")))[0]
    assert layer.gate.noise_scale(torch.zeros(1, 64)) is not None


def test_more_than_all_experts_is_a_problem() -> None:
    settings = {"router": "topk", "balance": "none", "control": "none", "top_k": 9}
    assert combination_problem(settings, "image", 8) == "top_k=9 exceeds the 8 experts; choose at most 8."


EVERYTHING = make_grid(Axes((2,), tuple(router_names()), tuple(STRATEGIES), seeds=1), "image", num_experts=8)


@pytest.mark.parametrize("cell", EVERYTHING.cells, ids=lambda cell: cell.variant)
def test_every_combination_that_a_sweep_allows_trains(cell: Cell, tiny: Any) -> None:
    config = tiny(num_layers=1, **cell.settings())
    assert 0 < train_step(initial_state(config), config, make_task(config).batch(0)).task < 20


def test_relaxed_routing_runs_all_experts_so_quantiles_of_k_are_refused() -> None:
    settings = {"router": "gumbel", "balance": "quantile", "control": "none", "top_k": 2}
    assert "the same K for every token, also in training" in (combination_problem(settings, "image", 8) or "")
    assert combination_problem({**settings, "balance": "sign_bias"}, "image", 8) is None
