"""The three ways of dispatching agree with each other and with a loop over the assignments."""

from typing import Any

import pytest
import torch
from torch import Tensor

import moegate
from moegate import recipes
from moegate.dispatch import METHODS, combine, dispatch, make_plan, padded_plan, soft_plan
from moegate.dispatch.row_plan import RowPlan
from moegate.records import Routing
from moegate.rule import RoutingRule

NUM_EXPERTS, HIDDEN = 8, 6
RULES: dict[str, RoutingRule] = {name: recipes.get(name)() for name in recipes.names() if name != "soft_moe"} | {
    "deepseek_v2": recipes.deepseek_v2(3, num_groups=4, groups_kept=2),
    "deepseek_v3": recipes.deepseek_v3(3, num_groups=4, groups_kept=2),
    "tight capacity": recipes.gshard(capacity_factor=0.5),
    "reroute": recipes.gshard().replace(capacity=moegate.Capacity(1.0, overflow="reroute")),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def routed(tokens: int, rule: RoutingRule, **inputs: Any) -> Routing:
    return moegate.route(
        torch.randn(tokens, rule.num_logits(NUM_EXPERTS), dtype=torch.float64),
        rule,
        token_ids=torch.arange(tokens),
        **inputs,
    )


def through(hidden: Tensor, routing: Routing, matrices: Tensor, method: str, weight_input: bool = False) -> Tensor:
    """Experts that are a squared linear map, so that a weight on the input is not one on the output."""
    rows, plan = dispatch(hidden, routing, method, weight_input=weight_input)
    starts = torch.cat([plan.offsets.new_zeros(1), plan.offsets[:-1]])
    mapped = [
        (rows[start:end] @ matrix).square()
        for start, end, matrix in zip(starts.tolist(), plan.offsets.tolist(), matrices, strict=True)
    ]
    return combine(torch.cat(mapped), plan)


def one_by_one(hidden: Tensor, routing: Routing, matrices: Tensor, weight_input: bool) -> Tensor:
    out = torch.zeros_like(hidden)
    for token, expert, weight in zip(*(values.tolist() for values in routing.edges()), strict=True):
        row = hidden[token] * weight if weight_input else hidden[token]
        value = (row @ matrices[expert]).square()
        out[token] += value if weight_input else value * weight
    return out


@every_rule
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight_input", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_against_a_loop(rule: RoutingRule, method: str, weight_input: bool, masked: bool) -> None:
    mask = torch.rand(13) > 0.3 if masked else None
    routing = routed(13, rule, token_mask=mask)
    hidden = torch.randn(13, HIDDEN, dtype=torch.float64)
    matrices = torch.randn(NUM_EXPERTS, HIDDEN, HIDDEN, dtype=torch.float64)
    out = through(hidden, routing, matrices, method, weight_input)
    torch.testing.assert_close(out, one_by_one(hidden, routing, matrices, weight_input), rtol=1e-12, atol=1e-12)
    assert mask is None or not out[~mask].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight_input", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "tight capacity", "expert_choice", "relu"])
def test_gradients_against_finite_differences(method: str, weight_input: bool, name: str) -> None:
    logits = (torch.rand(5, NUM_EXPERTS).argsort(dim=-1) * 0.1 + torch.arange(5)[:, None] * 0.013).double()
    logits = ((logits - 0.33) * (1 + 0.1 * torch.arange(5)[:, None])).requires_grad_()
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(NUM_EXPERTS, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(logits: Tensor, hidden: Tensor, matrices: Tensor) -> Tensor:
        return through(hidden, moegate.route(logits, RULES[name]), matrices, method, weight_input)

    assert torch.autograd.gradcheck(run, (logits, hidden, matrices))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mixtral", "dense", "expert_choice", "switch"])
def test_no_tokens(method: str, name: str) -> None:
    routing = routed(0, RULES[name])
    out = through(torch.zeros(0, HIDDEN), routing, torch.zeros(NUM_EXPERTS, HIDDEN, HIDDEN), method)
    assert out.shape == (0, HIDDEN)


@pytest.mark.parametrize("method", METHODS)
def test_all_tokens_masked(method: str) -> None:
    routing = routed(4, RULES["mixtral"], token_mask=torch.zeros(4, dtype=torch.bool))
    out = through(torch.randn(4, HIDDEN), routing, torch.randn(NUM_EXPERTS, HIDDEN, HIDDEN), method)
    assert out.shape == (4, HIDDEN) and not out.any()


@pytest.mark.parametrize("method", METHODS)
def test_all_tokens_to_one_expert(method: str) -> None:
    logits = torch.zeros(6, NUM_EXPERTS, dtype=torch.float64)
    logits[:, 5] = 3.0
    routing = moegate.route(logits, recipes.switch(capacity_factor=None))
    hidden = torch.randn(6, HIDDEN, dtype=torch.float64)
    matrices = torch.randn(NUM_EXPERTS, HIDDEN, HIDDEN, dtype=torch.float64)
    expected = (hidden @ matrices[5]).square() * routing.weights
    torch.testing.assert_close(through(hidden, routing, matrices, method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_broken_token_stays_with_itself(method: str) -> None:
    """NaN and infinity in one token's hidden state or logits reach no other token."""
    logits = torch.randn(7, NUM_EXPERTS)
    logits[2, 1] = float("nan")
    hidden = torch.randn(7, HIDDEN)
    hidden[4] = float("inf")
    hidden[5] = float("nan")
    out = through(hidden, moegate.route(logits, RULES["mixtral"]), torch.randn(NUM_EXPERTS, HIDDEN, HIDDEN), method)
    assert bool(out[2].isnan().all())
    assert not out[4].isfinite().all() and not out[5].isfinite().any()
    assert bool(out[[0, 1, 3, 6]].isfinite().all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_rows_are_summed_in_float32(method: str, dtype: torch.dtype) -> None:
    """4096 + 1 - 4096: a sum in either narrow type loses the 1."""
    routing = moegate.route(torch.zeros(1, 3), recipes.dense()).with_assignment(
        torch.tensor([[0, 1, 2]]), torch.ones(1, 3)
    )
    rows, plan = dispatch(torch.ones(1, 2, dtype=dtype), routing, method)
    values = torch.tensor([4096.0, 1.0, -4096.0], dtype=dtype).repeat_interleave(plan.counts)
    out = combine(rows * values[:, None], plan)
    assert out.dtype == dtype and out.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("method", METHODS)
def test_rounding_to_the_narrow_type_happens_once(method: str) -> None:
    routing = routed(50, RULES["olmoe"])
    hidden = torch.randn(50, HIDDEN).bfloat16()
    rows, plan = dispatch(hidden, routing, method)
    out = combine(rows, plan)
    exact = hidden.double() * routing.weights.sum(dim=1, keepdim=True)
    # Half a unit in the last of 8 bits, and the float32 sums' own rounding.
    assert bool(((out.double() - exact).abs() <= exact.abs() * (2**-8) * 0.5001 + 1e-7).all())


def test_rows_are_sorted_by_expert_then_token() -> None:
    routing = routed(20, RULES["mixtral"])
    plan = make_plan(routing)
    assert plan.counts.equal(routing.load) and plan.offsets.equal(routing.load.cumsum(0))
    experts = torch.arange(NUM_EXPERTS).repeat_interleave(plan.counts)
    pairs = list(zip(experts.tolist(), plan.token.tolist(), strict=True))
    assert pairs == sorted(pairs)
    edges = routing.edges()
    assert sorted(pairs) == sorted(zip(edges.expert.tolist(), edges.token.tolist(), strict=True))


@pytest.mark.parametrize("method", ["sorted", "padded"])
def test_what_a_plan_says_of_its_rows(method: str) -> None:
    routing = routed(11, RULES["tight capacity"], token_mask=torch.arange(11) != 4)
    plan = make_plan(routing, method)
    assert isinstance(plan, RowPlan)
    seen = []
    for row, (token, weight, slot) in enumerate(
        zip(plan.token.tolist(), plan.weight.tolist(), plan.slot.tolist(), strict=True)
    ):
        if slot < 0:
            assert (token, weight) == (11, 0.0) and method == "padded"
            continue
        k = slot % routing.top_k
        assert token == slot // routing.top_k and weight == routing.weights[token, k].item()
        assert plan.inverse[token, k].item() == row
        seen.append(slot)
    assert sorted(seen) == (routing.expert_index.flatten() >= 0).nonzero().flatten().tolist()
    assert plan.inverse.ge(0).equal(routing.expert_index >= 0)


@pytest.mark.parametrize("method", ["sorted", "padded"])
def test_narrow_indices_and_any_strides(method: str) -> None:
    routing = routed(9, RULES["olmoe"])
    plan = make_plan(routing, method)
    for index in (routing.expert_index.int(), routing.expert_index.mT.contiguous().mT):
        other = make_plan(routing.with_assignment(index, routing.weights.mT.contiguous().mT), method)
        assert isinstance(plan, RowPlan) and isinstance(other, RowPlan)
        assert other.slot.equal(plan.slot) and other.inverse.equal(plan.inverse) and other.counts.equal(plan.counts)
        hidden = torch.randn(9, HIDDEN)
        assert other.scatter(other.gather(hidden)).equal(plan.scatter(plan.gather(hidden)))


@pytest.mark.parametrize("wrong", [NUM_EXPERTS, -2, 10**9])
def test_an_expert_that_is_none_is_refused(wrong: int) -> None:
    routing = routed(5, RULES["mixtral"])
    index = routing.expert_index.clone()
    index[3, 1] = wrong
    with pytest.raises(RuntimeError, match="an empty slot is -1"):
        make_plan(routing.with_assignment(index, routing.weights))


def test_padding_is_refused_when_it_is_too_small() -> None:
    routing = moegate.route(torch.tensor([[1.0, 0.0]] * 3), recipes.switch(capacity_factor=None))
    for capacity in (0, 1, 2):
        with pytest.raises(ValueError, match=f"An expert has 3 assignments and capacity is {capacity}"):
            padded_plan(routing, capacity)
    assert padded_plan(routing, 3).counts.tolist() == [3, 3]


def test_empty_rows_of_padding_are_zero_and_count_nothing() -> None:
    routing = moegate.route(torch.tensor([[1.0, 0.0]] * 3), recipes.switch(capacity_factor=None))
    plan = padded_plan(routing, 5)
    rows = plan.gather(torch.full((3, 2), 7.0))
    assert rows[3:].eq(0).all() and rows[:3].eq(7).all()
    out = combine(torch.full_like(rows, 2.0), plan)
    torch.testing.assert_close(out, 2.0 * routing.weights.expand(3, 2))


def test_a_soft_plan_needs_slots() -> None:
    with pytest.raises(ValueError, match="has no slots"):
        soft_plan(routed(3, RULES["mixtral"]))


def test_a_soft_routing_of_no_tokens() -> None:
    for shape in ((0,), (2, 0), (0, 3)):
        routing = moegate.route(torch.randn(*shape, 4), recipes.soft_moe(slots_per_expert=2))
        rows, plan = dispatch(torch.zeros(0, HIDDEN), routing)
        assert combine(rows, plan).shape == (0, HIDDEN)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mixtral", "soft_moe"])
def test_autocast_does_not_narrow_the_weights(method: str, name: str) -> None:
    routing, hidden = moegate.route(torch.randn(9, 4), recipes.get(name)()), torch.randn(9, HIDDEN)
    rows, plan = dispatch(hidden, routing, method)
    expected = combine(rows, plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, plan = dispatch(hidden, routing, method)
        assert again.equal(rows) and combine(rows, plan).equal(expected)


@pytest.mark.parametrize("shape", [(3, HIDDEN), (1, 4, HIDDEN), (4,)])
def test_another_number_of_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"hidden must be \[4, D\], one row per routed token"):
        dispatch(torch.randn(*shape), routed(4, RULES["mixtral"]))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"dispatch must be one of .* Did you mean 'padded'"):
        make_plan(routed(4, RULES["mixtral"]), "paded")
