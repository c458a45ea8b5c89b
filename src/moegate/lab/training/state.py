"""All that changes while a run trains, and its way into a checkpoint and back."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moegate.lab.training.checkpoint import Checkpoint
from moegate.lab.training.window import Window


@dataclass
class TrainState:
    """The state of a run between two optimizer steps.

    Attributes:
        model: the model; its buffers hold the selection biases.
        optimizer: AdamW over the trainable parameters.
        controllers: one balance controller a routed layer, or none.
        generator: draws the noise of the routers.
        window: sums since the last log line.
        step: optimizer steps done.
        step_seconds: how long each step took.
    """

    model: nn.Module
    optimizer: torch.optim.AdamW
    controllers: nn.ModuleList
    generator: torch.Generator
    window: Window
    step: int = 0
    step_seconds: list[float] = field(default_factory=list)


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, with weight decay on matrices only.

    Example:
        >>> groups = make_optimizer(nn.Linear(2, 3), 1e-3, 0.1).param_groups
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.1, 1), (0.0, 1)]

    Source: Loshchilov and Hutter, AdamW, arXiv 1711.05101.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def to_checkpoint(state: TrainState, config: dict[str, Any]) -> Checkpoint:
    """Return the state as a checkpoint, with the configuration it belongs to."""
    optimizer = state.optimizer.state_dict()
    tensors = {
        **_prefixed("model", state.model.state_dict()),
        **_prefixed("controllers", state.controllers.state_dict()),
        **{
            f"optimizer.{index}.{name}": value
            for index, values in optimizer["state"].items()
            for name, value in values.items()
        },
        "generator": state.generator.get_state(),
        "window.load": state.window.load,
        "window.selected": state.window.selected,
        "step_seconds": torch.tensor(state.step_seconds, dtype=torch.float64),
    }
    window = {name: getattr(state.window, name) for name in ("loss_sum", "balance_sum", "steps")}
    metadata = {"config": config, "step": state.step, "window": window, "groups": optimizer["param_groups"]}
    return Checkpoint(tensors, metadata)


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Bring a fresh state to where the checkpoint was taken.

    Raises:
        ValueError: a checkpoint of another model.
    """
    tensors, metadata = checkpoint
    try:
        state.model.load_state_dict(_under("model", tensors))
        state.controllers.load_state_dict(_under("controllers", tensors))
    except RuntimeError as error:
        raise ValueError(f"The checkpoint belongs to another model: {error}.") from error
    state.optimizer.load_state_dict({"state": _optimizer_state(tensors), "param_groups": metadata["groups"]})
    state.generator.set_state(tensors["generator"])
    state.window = Window(tensors["window.load"], tensors["window.selected"], **metadata["window"])
    state.step = metadata["step"]
    state.step_seconds = tensors["step_seconds"].tolist()


def _prefixed(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for index, name, value in _optimizer_entries(tensors):
        state.setdefault(index, {})[name] = value
    return state


def _optimizer_entries(tensors: dict[str, Tensor]) -> Iterator[tuple[int, str, Tensor]]:
    for key, value in _under("optimizer", tensors).items():
        index, _, name = key.partition(".")
        yield int(index), name, value
