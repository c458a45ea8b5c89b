"""One optimizer step: micro-batches, losses, gradients, clipping, and the balance controllers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moegate.balance import losses
from moegate.balance.controllers import BiasController
from moegate.estimators import annealed
from moegate.lab.training.balancing import balance_strategy
from moegate.lab.training.building import anneal, routed_layers
from moegate.lab.training.config import TrainConfig
from moegate.lab.training.schedule import learning_rate_at
from moegate.lab.training.state import TrainState
from moegate.lab.training.task import Batch
from moegate.records import Routing


class StepLosses(NamedTuple):
    """The losses of one step, means over its micro-batches; `balance` is without its coefficient."""

    task: float
    balance: float


def train_step(state: TrainState, config: TrainConfig, batch: Batch) -> StepLosses:
    """Do one optimizer step on a batch and return its losses.

    Raises:
        ValueError: the loss isn't finite.
    """
    _set_schedules(state, config)
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    parts = [_micro_step(state, config, micro) for micro in batch.split(config.accumulate)]
    trainable = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(trainable, config.clip_norm)
    state.optimizer.step()
    _update_biases(state)
    result = StepLosses(*(sum(values) / len(parts) for values in zip(*parts, strict=True)))
    if not torch.tensor(result.task).isfinite():
        raise ValueError(
            f"The loss of step {state.step + 1} is {result.task}. Try a smaller learning_rate or a longer warm-up."
        )
    state.window.add_losses(result.task, result.balance)
    state.step += 1
    return result


def _set_schedules(state: TrainState, config: TrainConfig) -> None:
    rate = learning_rate_at(
        state.step, peak=config.learning_rate, warmup_steps=config.warmup_steps, total_steps=config.steps
    )
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    temperature = annealed(state.step, start=config.temperature_start, end=config.temperature_end, steps=config.steps)
    anneal(state.model, temperature)


def _micro_step(state: TrainState, config: TrainConfig, batch: Batch) -> StepLosses:
    logits, routings = state.model(batch.inputs, token_ids=batch.token_ids, generator=state.generator)
    task = F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten())
    balance = balance_loss(config, routings)
    total = task + config.balance_coefficient * balance
    if config.z_loss > 0 and routings:
        total = total + config.z_loss * torch.stack([losses.router_z(routing) for routing in routings]).sum()
    (total / config.accumulate).backward()
    state.window.add_routings(routings)
    for controller, routing in zip(_controllers(state), routings, strict=False):
        controller.observe(routing)
    return StepLosses(float(task.detach()), float(balance.detach()))


def _controllers(state: TrainState) -> list[BiasController]:
    return [controller for controller in state.controllers if isinstance(controller, BiasController)]


def _update_biases(state: TrainState) -> None:
    for controller, layer in zip(_controllers(state), routed_layers(state.model), strict=False):
        bias = layer.gate.e_score_correction_bias
        assert bias is not None, "a gate with a controller is built with a bias"
        # Null classes have a bias too, which nothing balances.
        controller.update(bias[: layer.num_experts])


def balance_loss(config: TrainConfig, routings: Sequence[Routing]) -> Tensor:
    """Return the balance loss of the configured strategy, summed over layers; 0 without one.

    Example:
        >>> balance_loss(TrainConfig.create(task="image"), [])
        tensor(0.)
    """
    loss = balance_strategy(config.balance).loss
    return loss(routings) if loss is not None and routings else torch.zeros(())
