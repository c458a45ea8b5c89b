"""One optimizer step: what it changes, what it leaves alone, and what it adds up to."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from moegate.balance import losses
from moegate.lab.training.building import routed_layers
from moegate.lab.training.loop import initial_state
from moegate.lab.training.state import TrainState, make_optimizer
from moegate.lab.training.step import balance_loss, train_step
from moegate.lab.training.task import Batch
from moegate.lab.training.tasks import make_task


def run_steps(config: Any, steps: int) -> TrainState:
    state, task = initial_state(config), make_task(config)
    for step in range(steps):
        train_step(state, config, task.batch(step))
    return state


def gates(state: TrainState) -> list[torch.Tensor]:
    return [layer.gate.weight.detach().clone() for layer in routed_layers(state.model)]


@pytest.mark.parametrize("task", ["image", "text"])
def test_a_frozen_gate_never_moves_while_the_rest_learns(task: str, tiny: Any) -> None:
    config = tiny(task, control="frozen")
    before, after = initial_state(config), run_steps(config, 5)
    assert all(torch.equal(one, other) for one, other in zip(gates(before), gates(after), strict=True))
    for name, value in before.model.state_dict().items():
        if ".gate.weight" not in name:
            assert not torch.equal(value, after.model.state_dict()[name]), name


def test_a_learned_gate_starts_where_the_frozen_one_stays_and_moves(tiny: Any) -> None:
    frozen, learned = tiny(control="frozen"), tiny(balance="none")
    start = gates(initial_state(learned))
    assert all(torch.equal(a, b) for a, b in zip(start, gates(initial_state(frozen)), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start, gates(run_steps(learned, 3)), strict=True))


def test_accumulated_micro_batches_equal_one_batch(tiny: Any) -> None:
    # Without balance and routing, the mean over equal micro-batches is the mean over the batch.
    states = [run_steps(tiny(control="dense", accumulate=parts), 3) for parts in (1, 4)]
    for one, other in zip(*(state.model.parameters() for state in states), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_sign_controller_moves_the_bias_once_a_step(accumulate: int, tiny: Any) -> None:
    config = tiny(balance="sign_bias", controller_rate=0.5, accumulate=accumulate)
    state, task = initial_state(config), make_task(config)
    train_step(state, config, task.batch(0))
    load_LE = state.window.selected
    for layer, load_E in zip(routed_layers(state.model), load_LE, strict=True):
        sign_E = torch.sign(load_E.double().mean() - load_E.double())
        expected = 0.5 * (sign_E - sign_E.mean())
        bias = layer.gate.e_score_correction_bias
        assert bias is not None
        # Differences select; whether the mean is kept is the controller's own choice.
        torch.testing.assert_close(bias.double() - bias.double().mean(), expected, rtol=0, atol=1e-6)


def test_the_window_counts_each_token_once(tiny: Any) -> None:
    config = tiny(top_k=2, accumulate=2)
    state = run_steps(config, 3)
    assert state.window.load.sum(dim=1).tolist() == [3 * 16 * 2] * 2
    assert state.window.steps == 3


def test_the_losses_are_those_of_a_plain_forward(tiny: Any) -> None:
    config = tiny(balance="aux")
    state, task = initial_state(config), make_task(config)
    batch = task.batch(0)
    with torch.no_grad():
        logits, routings = initial_state(config).model.train()(batch.inputs, batch.token_ids)
    result = train_step(state, config, batch)
    assert result.task == pytest.approx(float(F.cross_entropy(logits, batch.targets)), rel=1e-6)
    assert result.balance == pytest.approx(sum(float(losses.load_balance(r)) for r in routings), rel=1e-6)


@pytest.mark.parametrize("setting", [{"balance_coefficient": 1.0}, {"z_loss": 1.0}])
def test_each_coefficient_reaches_the_gate(setting: dict[str, float], tiny: Any) -> None:
    without = gates(run_steps(tiny(balance_coefficient=0.0), 1))
    assert all(not torch.equal(a, b) for a, b in zip(without, gates(run_steps(tiny(**setting), 1)), strict=True))


def test_the_pooled_loss_weighs_as_much_as_the_sum_over_layers(tiny: Any) -> None:
    config = tiny(balance="aux_pooled")
    batch = make_task(config).batch(0)
    with torch.no_grad():
        _, routings = initial_state(config).model(batch.inputs, batch.token_ids)
        pooled = balance_loss(config, routings)
    assert float(pooled) == pytest.approx(2 * float(losses.pooled_load_balance(routings)))


def test_the_temperature_falls_over_the_run(tiny: Any) -> None:
    config = tiny(router="gumbel", temperature_start=2.0, temperature_end=0.5)
    state, task = initial_state(config), make_task(config)
    temperatures = []
    for step in range(config.steps):
        train_step(state, config, task.batch(step))
        temperatures.append(routed_layers(state.model)[0].rule.estimator.temperature)
    assert temperatures[0] == 2.0
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[-1] == pytest.approx(0.5, rel=0.15)


def test_the_gradient_is_clipped(tiny: Any) -> None:
    config = tiny(clip_norm=1e-3, balance="none")
    state = initial_state(config)
    train_step(state, config, make_task(config).batch(0))
    norm = torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None]).norm()
    assert float(norm) <= 1e-3 * 1.001


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tiny: Any) -> None:
    config = tiny()
    state, batch = initial_state(config), make_task(config).batch(0)
    broken = Batch(batch.inputs * float("nan"), *batch[1:])
    with pytest.raises(ValueError, match=r"loss of step 1 is nan.*smaller learning_rate"):
        train_step(state, config, broken)


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.RMSNorm(4))
    decayed, kept = make_optimizer(model, 1e-3, 0.5).param_groups
    assert [p.dim() for p in decayed["params"]] == [2]
    assert [p.dim() for p in kept["params"]] == [1, 1]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)
