"""Models from configurations: what the controls control for, and how parameters are counted."""

from typing import Any

import pytest
import torch
from torch import nn

from moegate.experts import Experts, SharedExperts
from moegate.lab.training.building import build_model, parameter_counts, routed_layers
from moegate.lab.training.tasks import make_task


def feed_forward_multiplications(model: nn.Module, inputs: torch.Tensor) -> int:
    """Multiplications of the expert or dense matrices in one forward, counted by the rows that reach them."""
    total = 0

    def count_experts(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal total
        total += sum(args[0].shape[0] * parameter[0].numel() for parameter in module.parameters())

    def count_dense(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal total
        total += args[0][..., 0].numel() * sum(parameter.numel() for parameter in module.parameters())

    for module in model.modules():
        if isinstance(module, Experts):
            module.register_forward_hook(count_experts)
        elif isinstance(module, SharedExperts):
            module.register_forward_hook(count_dense)
    model.eval()(inputs)
    return total


@pytest.mark.parametrize("task", ["image", "text"])
@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_the_dense_control_multiplies_as_much_as_k_experts(task: str, top_k: int, tiny: Any) -> None:
    routed, dense = (tiny(task, top_k=top_k, control=control) for control in ("none", "dense"))
    inputs = make_task(routed).batch(0).inputs
    counts = [feed_forward_multiplications(build_model(config), inputs) for config in (routed, dense)]
    expected = inputs.shape[0] * (16 if task == "text" else 1) * routed.num_layers
    expected *= 3 * routed.hidden_size * routed.intermediate_size * top_k
    assert counts == [expected, expected]


@pytest.mark.parametrize("top_k", [1, 4])
def test_active_parameters_are_those_that_one_token_meets(top_k: int, tiny: Any) -> None:
    config = tiny(top_k=top_k)
    model = build_model(config)
    total, active = parameter_counts(config, model)
    expert = 3 * config.hidden_size * config.intermediate_size
    assert total == sum(parameter.numel() for parameter in model.parameters())
    assert total - active == config.num_layers * (config.num_experts - top_k) * expert


def test_a_dense_control_has_no_router_and_is_active_all_over(tiny: Any) -> None:
    config = tiny(control="dense")
    model = build_model(config)
    total, active = parameter_counts(config, model)
    assert routed_layers(model) == []
    assert total == active


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"router": "hash", "balance": "aux"}, "can't act on the router 'hash'"),
        ({"control": "frozen", "balance": "aux"}, "nothing to act on in the control 'frozen'"),
        ({"balance": "aux_sequence"}, "images have none"),
        ({"balance": "importance_load"}, "learned noise"),
        ({"balance": "quantile", "top_k": 8}, "K is all 8 experts"),
        ({"balance": "quantile", "router": "top_p"}, "the same K for every token"),
        ({"capacity_factor": 1.5}, "router 'topk' has no capacity"),
        ({"balance": "auxx"}, "Unknown balance 'auxx'"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str, tiny: Any) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(tiny(**settings))
