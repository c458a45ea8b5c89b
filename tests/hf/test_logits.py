"""The logits of a gate: in every type bit for bit the model's, and with its gradients."""

import pytest
import torch

pytest.importorskip("transformers")

from ground_truth import watched
from tiny_models import every_model, tiny_inputs, tiny_model

from moegate.hf import moe_layers
from moegate.hf.logits import LOGITS, gate_logits

# No gate; probabilities in place of logits; the keys of a pair apart.
UNCOMPARED = {"vitpose_backbone", "gemma4", "diffusion_gemma", "doge"}
COMPARED = [name for name in every_model() if name not in UNCOMPARED]


def returned_logits(layer, seen, logits):
    """What the router returned in the place of its logits, as ``logits`` are laid out."""
    width = layer.num_experts
    tensors = [value for value in seen.returned if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return [tensor.reshape(len(logits), -1) for tensor in tensors if tensor.shape[-1] >= width]


def assert_bits(name, model, dtype=torch.float32):
    layers = moe_layers(model)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tiny_inputs(name).items()}
    with watched(layers[:2]) as calls, torch.no_grad():
        model(**inputs)
        for layer, (seen, *_) in zip(layers, calls, strict=False):
            logits = gate_logits(layer, *seen.args, **seen.kwargs).flatten(0, -2)
            theirs = returned_logits(layer, seen, logits)
            # A router may widen its logits after it has made them; Inkling keeps those of shared experts to itself.
            assert any(torch.equal(value.float(), logits[:, : value.shape[1]].float()) for value in theirs)


# Inkling 2 itself needs the weight of its gate in float32.
@pytest.mark.parametrize("name", [name for name in COMPARED if name != "inkling2"])
def test_in_bfloat16(name):
    assert_bits(name, tiny_model(name).to(torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "ernie4_5_moe", "flint", "inkling"])
def test_under_autocast(name):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_bits(name, tiny_model(name))


@pytest.mark.parametrize("name", [name for name in every_model() if name != "vitpose_backbone"])
def test_gradients_reach_the_hidden_states_and_the_parameters_of_the_gate(name):
    model = tiny_model(name)
    layer = moe_layers(model)[0]
    with watched([layer]) as calls, torch.no_grad():
        model(**tiny_inputs(name))
    (hidden, *more), named = calls[0][0].args, calls[0][0].kwargs
    hidden.requires_grad_(True)
    gate_logits(layer, hidden, *more, **named).float().square().sum().backward()
    assert hidden.grad.abs().sum() > 0
    for path, parameter in layer.gate.named_parameters():
        # Gemma's factors and Inkling's scale belong to the weights; ERNIE's bias to the selection.
        if parameter.requires_grad and not path.endswith(("per_expert_scale", "global_scale", "correction_bias")):
            assert parameter.grad is not None, path


def test_every_kind_is_some_rows():
    from moegate.hf.families import FAMILIES

    assert {row.logits for rows in FAMILIES.values() for row in rows if row.gate} == LOGITS.keys()
