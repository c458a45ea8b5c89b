"""What is seen of the experts, against the tests' own hooks: every family, implementation and mode."""

import pytest
import torch

pytest.importorskip("transformers")

from tiny_models import every_model, tiny_inputs, tiny_model
from truth import Truth

from moegate.hf import moe_layers, record
from moegate.hf.logits import gate_logits
from moegate.hf.received import CALLS, watch

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm", "moegate")


def dense(received, num_experts):
    """``[T, E]``, the weights as a matrix."""
    index, weights = received.expert_index, received.weights.detach().float()
    rows = torch.zeros(len(index), num_experts + 1)
    rows.scatter_add_(1, index.masked_fill(index < 0, num_experts).clamp(max=num_experts), weights)
    return rows[:, :num_experts]


def compare(received, truth, num_experts):
    torch.testing.assert_close(dense(received, num_experts), truth.dense[:, :num_experts], atol=1e-6, rtol=1e-5)
    if truth.index is not None:
        # A choice of no expert reaches ZAYA's experts as expert 0 with the weight 0.
        assert torch.equal(received.expert_index.clamp(min=0), truth.index)
        assert truth.weights is None or not truth.weights[received.expert_index < 0].any()
    if truth.weights is not None:
        torch.testing.assert_close(received.weights, truth.weights, atol=0, rtol=1e-6)


def runs(model):
    """The implementations that the model has, each in evaluation and in training mode."""
    for implementation in IMPLEMENTATIONS:
        try:
            model.set_experts_implementation(implementation)
        except (ValueError, AttributeError):
            if implementation != "eager":
                continue
        yield from (model.eval(), model.train())


@pytest.mark.parametrize("name", every_model())
def test_sees_what_the_experts_receive(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    layers = moe_layers(model)
    assert layers
    for _ in runs(model):
        seen = {layer.name: [] for layer in layers}
        handles = [watch(layer, seen[layer.name].append) for layer in layers]
        truth = Truth(model)
        model(**inputs)
        for handle in [*handles, truth]:
            handle.remove()
        # NLLB leaves out some layers in training.
        assert set(truth.calls) == {name for name, calls in seen.items() if calls}
        assert model.training or len(truth.calls) == len(layers)
        for layer in layers:
            for received, call in zip(seen[layer.name], truth.calls[layer.name], strict=True):
                compare(received, call, layer.num_experts)
        before = {name: len(calls) for name, calls in seen.items()}
        model(**inputs)
        assert {name: len(calls) for name, calls in seen.items()} == before


@pytest.mark.parametrize("name", every_model())
def test_records_them_as_rows(name):
    """The recording's rows, whose order the tests know: batch first, and what a layer does not see is empty."""
    model, inputs = tiny_model(name), tiny_inputs(name)
    truth = Truth(model)
    with record(model, logits=True) as recording, torch.no_grad():
        model(**inputs)
    truth.remove()
    trace = recording.trace
    for number, layer in enumerate(moe_layers(model)):
        (call,) = truth.calls[layer.name]
        index, weights = trace.indices[:, number].long(), trace.weights[:, number]
        there = (index >= 0).any(dim=1)
        mine = torch.zeros(len(index), layer.num_experts + 1)
        mine.scatter_add_(1, index.masked_fill(index < 0, layer.num_experts), weights)
        got = mine[:, : layer.num_experts]
        # Tokens without any expert (Switch drops them, ZAYA skips them) are as empty as tokens that are elsewhere.
        taken = call.dense[:, : layer.num_experts].gt(0).any(dim=1)
        assert int(there.sum()) == int(taken.sum())
        torch.testing.assert_close(got[there], call.dense[taken, : layer.num_experts], atol=1e-6, rtol=1e-5)
        assert torch.equal(trace.load[number, : layer.num_experts], call.dense[:, : layer.num_experts].gt(0).sum(dim=0))
    assert torch.equal(trace.load, recording.load)


def test_every_way_of_receiving_is_a_family_s():
    used = {layer.row.receives for name in every_model() for layer in moe_layers(tiny_model(name))}
    assert used == set(CALLS)


@pytest.mark.parametrize("how", ["positions", "names", "mixed", "common names"])
def test_arguments_by_position_and_by_name(how):
    model = tiny_model("gpt_oss")
    model.set_experts_implementation("eager" if how != "common names" else "grouped_mm")
    layer = moe_layers(model)[0]
    hidden, index, weights = torch.randn(3, 32), torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.rand(3, 2)
    seen = []
    handle = watch(layer, seen.append)
    if how == "positions":
        layer.experts(hidden, index, weights)
    elif how == "names":
        layer.experts(hidden_states=hidden, router_indices=index, routing_weights=weights)
    elif how == "common names":
        layer.experts(hidden_states=hidden, top_k_index=index, top_k_weights=weights)
    else:
        layer.experts(hidden, routing_weights=weights, router_indices=index)
    handle.remove()
    handle.remove()
    assert seen[0].expert_index is index
    assert seen[0].weights is weights
    layer.experts(hidden, index, weights)
    assert len(seen) == 1


def test_adapters_around_the_experts():
    """PEFT puts a module around the experts, which holds them as ``base_layer`` and passes the call on."""

    class Adapter(torch.nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

        def forward(self, *args, **kwargs):
            return self.base_layer(*args, **kwargs)

    model = tiny_model("qwen3_moe")
    for decoder in model.model.layers:
        decoder.mlp.experts = Adapter(decoder.mlp.experts)
    seen = []
    layer = moe_layers(model)[0]
    watch(layer, seen.append)
    model(**tiny_inputs("qwen3_moe"))
    layer.experts(hidden_states=torch.randn(1, 32), top_k_index=torch.tensor([[1]]), top_k_weights=torch.ones(1, 1))
    assert seen[0].expert_index.shape == (24, 2)
    assert seen[1].expert_index.tolist() == [[1]]


@pytest.mark.parametrize("name", every_model())
def test_logits_are_the_gate_s(name):
    """Against the gate's own parameters; what is recorded is what orders the experts."""
    model, inputs = tiny_model(name), tiny_inputs(name)
    layers = [layer for layer in moe_layers(model) if layer.row.gate is not None]
    made = {}
    for layer in layers:

        def keep(module, args, kwargs, output, layer=layer):
            made[layer.name] = gate_logits(layer, *args, **kwargs)

        layer.gate.register_forward_hook(keep, with_kwargs=True)
    with record(model, logits=True) as recording, torch.no_grad():
        model(**inputs)
    trace = recording.trace
    for layer in layers:
        logits = trace.logits[:, trace.layers.index(layer.name), : layer.num_experts]
        expected = made[layer.name].float().flatten(0, -2)  # Switch counts by sequence
        if layer.row.logits == "product_keys":
            first, second = expected.chunk(2, dim=1)
            expected = torch.stack([(a[:, None] + b).flatten() for a, b in zip(first, second, strict=True)])
        logits = logits[logits.isfinite().all(dim=1)]
        torch.testing.assert_close(logits, expected[:, : layer.num_experts], rtol=1e-6, atol=1e-6)
