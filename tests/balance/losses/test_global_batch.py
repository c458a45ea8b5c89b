"""Global counts in one process, and gradient accumulation with the right denominators (ranks: test_ranks.py)."""

import pytest
import torch

import moegate
from moegate.balance.losses import LoadAccumulator, global_load_balance, load_balance

RULE = moegate.recipes.mixtral(top_k=2)


def test_one_process_is_the_plain_loss() -> None:
    routing = moegate.route(torch.randn(30, 5), RULE, token_mask=torch.rand(30) < 0.7)
    torch.testing.assert_close(global_load_balance(routing), load_balance(routing), rtol=0, atol=0)
    torch.testing.assert_close(global_load_balance(routing, token_weighted=True), load_balance(routing))
    load = torch.tensor([5, 4, 3, 2, 1])
    assert global_load_balance(routing, load=load) == load_balance(routing, load=load)


def test_the_last_micro_batch_sees_all_counts() -> None:
    micro_batches = [torch.randn(tokens, 4) for tokens in (7, 1, 12)]
    accumulator = LoadAccumulator(4)
    seen = [accumulator.add(moegate.route(logits, RULE)) for logits in micro_batches]
    each = [moegate.route(logits, RULE).selected_load for logits in micro_batches]
    for count, load in enumerate(seen, start=1):
        assert torch.equal(load, torch.stack(each[:count]).sum(0))  # and what was handed out stays as it was
    accumulator.reset()
    assert accumulator.load.tolist() == [0, 0, 0, 0] and accumulator.load.dtype == torch.int64


def test_the_loss_does_not_grow_with_the_number_of_micro_batches() -> None:
    """Accumulated counts over one micro-batch's tokens would read 1, 2, 3, 4 here (Megatron-LM #7213)."""
    even = 9 * torch.eye(4)
    accumulator = LoadAccumulator(4)
    readings = []
    for _ in range(4):
        routing = moegate.route(even, moegate.recipes.switch())
        readings.append(load_balance(routing, load=accumulator.add(routing)).item())
    assert readings == pytest.approx([1.0] * 4, abs=1e-5)


def test_micro_batches_that_balance_each_other_are_balanced() -> None:
    """Each micro-batch alone reads E; with the counts of both, the pressure on its expert is gone."""
    halves = [torch.tensor([[9.0, 0.0]] * 5), torch.tensor([[0.0, 9.0]] * 5)]
    routings = [moegate.route(half, moegate.recipes.switch()) for half in halves]
    load = torch.stack([routing.selected_load for routing in routings]).sum(0)
    for routing in routings:
        assert load_balance(routing).item() > 1.99
        assert global_load_balance(routing, load=load).item() == pytest.approx(1.0, abs=1e-5)


def test_counts_of_an_earlier_micro_batch_can_include_or_leave_out_what_was_dropped() -> None:
    routing = moegate.route(torch.tensor([[9.0, 0.0]] * 3), moegate.recipes.switch())
    routing = routing.with_assignment(torch.tensor([[0], [-1], [-1]]), routing.weights)
    assert LoadAccumulator(2).add(routing).tolist() == [3, 0]
    assert LoadAccumulator(2).add(routing, dropped=True).tolist() == [1, 0]


def test_mismatches_are_refused() -> None:
    routing = moegate.route(torch.randn(3, 4), RULE)
    with pytest.raises(ValueError, match="4 experts, the accumulator counts 5: use one accumulator per layer"):
        LoadAccumulator(5).add(routing)
    with pytest.raises(ValueError, match=r"shape \(5,\).*4 experts"):
        global_load_balance(routing, load=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_experts=0"):
        LoadAccumulator(0)
