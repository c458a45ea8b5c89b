"""Every family of transformers: its gates learn from the balance loss, its biases move, and its counts are there."""

import pytest
from tiny_models import every_model, tiny_inputs, tiny_model

from moegate.balance.controllers import SignBias
from moegate.hf import moe_layers
from moegate.hf.training import RoutingMonitor, router_is_frozen


@pytest.mark.parametrize("name", every_model())
def test_a_step_of_training(name: str) -> None:
    model = tiny_model(name).train()
    layers = moe_layers(model)
    gated = all(layer.row.gate is not None for layer in layers)
    before = {
        layer.name: layer.bias.clone() for layer in layers if layer.bias is not None and not router_is_frozen(layer)
    }
    with RoutingMonitor(
        model, balance_loss=0.5 if gated else None, bias_controller=SignBias if before else None
    ) as monitor:
        model(**tiny_inputs(name))
        if gated:
            # Alone: whatever gradient a gate has now, it has from here.
            monitor.balance_loss().backward()
        monitor.step()
        losses = monitor.layer_losses()
    assert all(monitor.window.tokens(number) for number in range(len(layers)))
    assert losses.keys() == ({layer.name for layer in layers} if gated else set())
    assert all(0.3 < loss < max(layer.num_experts for layer in layers) for loss in losses.values())
    if gated:
        for layer in layers:
            assert any(p.grad is not None and p.grad.any() for p in layer.gate.parameters()), layer.name
    moved = {layer.name for layer in layers if layer.name in before and (layer.bias != before[layer.name]).any()}
    assert moved == before.keys()
