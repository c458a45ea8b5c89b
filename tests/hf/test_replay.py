"""Replay: the experts receive what the trace says, by the tests' own hooks; weights and gradients by live logits."""

import dataclasses

import pytest
import torch

pytest.importorskip("transformers")

from tiny_models import every_model, tiny_inputs, tiny_model
from truth import Truth

from moegate.hf import moe_layers, record, replay
from moegate.hf.logits import gate_logits
from moegate.hf.rerouted import REROUTES, weights_of
from moegate.trace import Trace

UNREPLAYED = {
    "doge": "its experts are not chosen by a router's output",
    "nllb_moe": "its experts are not chosen by a router's output",
    "vitpose_backbone": "its experts are not chosen by a router's output",
}


def tokens(batch=2, length=6):
    return torch.randint(3, 60, (batch, length))


def values_of(model, inputs):
    with torch.no_grad():
        values = model(**inputs)[0]
    return values[0] if isinstance(values, tuple) else values


def traced(model, inputs):
    with record(model) as recording:
        values = values_of(model, inputs)
    return recording.trace, values


def shifted(trace):
    """The same trace with every expert's number one higher."""
    counts = torch.tensor(trace.num_experts)[None, :, None]
    indices = torch.where(trace.indices >= 0, (trace.indices.long() + 1) % counts, -1)
    return dataclasses.replace(trace, indices=indices)


def has_rule(layer):
    try:
        return layer.rule is not None
    except ValueError:
        return False


@pytest.mark.parametrize("name", every_model())
def test_every_family(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    trace, values = traced(model, inputs)
    unfit = [layer for layer in moe_layers(model) if layer.row.receives not in REROUTES or not has_rule(layer)]
    if unfit:
        with pytest.raises(ValueError, match="can't be replayed"), replay(model, trace):
            pass
        return
    # Its own trace: the same values, bit for bit.
    with replay(model, trace) as running:
        assert torch.equal(values_of(model, inputs), values)
    assert running.num_changed == 0
    # Other experts: these are received, and their weights are those of the rule.
    other, truth = shifted(trace), Truth(model)
    with replay(model, other) as running:
        assert not torch.equal(values_of(model, inputs), values)
    truth.remove()
    assert running.num_changed > 0.9 * running.num_routed
    for number, layer in enumerate(moe_layers(model)):
        (call,) = truth.calls[layer.name]
        mine = other.indices[:, number].long()
        mine = mine[(mine >= 0).any(dim=1)]
        reached = torch.zeros(len(mine), layer.num_experts + 1, dtype=torch.bool)
        reached.scatter_(1, mine.masked_fill(mine < 0, layer.num_experts), True)
        taken = call.dense[call.dense.gt(0).any(dim=1), : layer.num_experts]
        assert torch.equal(taken.gt(0), reached[:, : layer.num_experts])


@pytest.mark.parametrize("name", every_model())
def test_the_rule_gives_the_model_s_weights(name):
    """From the gate's own logits; this is what replay stands on."""
    model, inputs = tiny_model(name), tiny_inputs(name)
    layers = [layer for layer in moe_layers(model) if layer.row.receives in REROUTES and has_rule(layer)]
    if not layers:
        return
    made = {}
    for layer in layers:

        def keep(module, args, kwargs, output, layer=layer):
            made[layer.name] = gate_logits(layer, *args, **kwargs)

        layer.gate.register_forward_hook(keep, with_kwargs=True)
    with record(model) as recording, torch.no_grad():
        model(**inputs)
    trace = recording.trace
    for layer in layers:
        number = trace.layers.index(layer.name)
        index = trace.indices[:, number].long()
        rows = (index >= 0).any(dim=1)
        if len(made[layer.name]) < len(index):  # other tokens than these go to other layers
            index, expected = index[rows], trace.weights[rows, number]
        else:
            expected = trace.weights[:, number]
        weights = weights_of(layer, made[layer.name], index)
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def model():
    return tiny_model("qwen3_moe")


def test_gradients_reach_the_gate(model):
    """Against finite differences, with experts that the router would not choose."""
    model = model.double().eval()
    model.set_experts_implementation("eager")
    ids = tokens()
    with record(model) as recording, torch.no_grad():
        model(ids)
    trace = shifted(recording.trace)
    gate = model.model.layers[2].mlp.gate.weight

    def loss():
        with replay(model, trace):
            return model(ids).logits.pow(2).mean()

    loss().backward()
    gradient, step = gate.grad.clone(), 1e-2
    assert gradient.abs().max() > 0
    for row, column in ((0, 0), (3, 7), (7, 31)):
        differences = []
        for sign in (1, -1):
            with torch.no_grad():
                gate[row, column] += sign * step
                differences.append(loss().item())
                gate[row, column] -= sign * step
        expected = (differences[0] - differences[1]) / (2 * step)
        assert gradient[row, column].item() == pytest.approx(expected, rel=5e-3, abs=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("order", ["one by one", "together", "the first first"])
def test_a_recomputed_forward_takes_its_rows_again(model, reentrant, order):
    model.train().enable_input_require_grads()
    batches = [tokens(2, 5), tokens(2, 5)]
    with record(model) as recording:
        for ids in batches:
            model(ids)
    trace = shifted(recording.trace)

    def gradients():
        model.zero_grad()
        with replay(model, trace):
            losses = []
            for ids in batches:
                losses.append(model(ids, labels=ids, use_cache=False).loss)
                if order == "one by one":
                    losses.pop().backward()
            if order == "together":
                sum(losses).backward()
            for loss in losses if order == "the first first" else ():
                loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    truth = Truth(model)
    got = gradients()
    truth.remove()
    for calls in truth.calls.values():
        assert len(calls) == 4
        each = sorted(call.index.tolist() for call in calls)
        assert each[0] == each[1] != each[2] == each[3]
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_generate_call_by_call(model):
    ids = tokens(2, 5)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with record(model) as recording:
        out = model.generate(ids, **options)
    with replay(model, recording.trace) as running:
        assert torch.equal(model.generate(ids, **options), out)
    assert running.num_calls == 4
    assert running.num_changed == 0
    other = tiny_model("qwen3_moe", seed=1)
    with record(other) as seen, replay(other, recording.trace) as running:
        other.generate(ids, **options)
    # What one model recorded, the other's experts received.
    assert torch.equal(seen.indices, recording.indices)
    assert running.num_changed > 0


def test_encoder_and_decoder():
    name = "switch_transformers"
    model, inputs = tiny_model(name), tiny_inputs(name)
    trace, values = traced(model, inputs)
    with replay(model, trace):
        assert torch.equal(values_of(model, inputs), values)


def test_half_of_a_replay_in_other_tokens_than_text():
    name = "ernie4_5_vl_moe"
    model, inputs = tiny_model(name), tiny_inputs(name)
    trace, _ = traced(model, inputs)
    other = tiny_model(name, seed=1)
    with record(other) as seen, replay(other, trace):
        values_of(other, inputs)
    assert torch.equal(seen.indices, trace.indices)


def test_padding_is_routed_live_and_an_empty_slot_stays_empty(model):
    ids = tokens()
    trace, _ = traced(model, {"input_ids": ids})
    indices = trace.indices.clone()
    indices[3] = -1  # in no layer: padding
    indices[5, 1, 0] = -1
    truth = Truth(model)
    with replay(model, dataclasses.replace(trace, indices=indices)) as running, torch.no_grad():
        model(ids)
    truth.remove()
    assert running.num_changed >= 1
    calls = [calls[0] for calls in truth.calls.values()]
    assert torch.equal(calls[0].index, trace.indices[:, 0].long())
    assert calls[1].dense[5].gt(0).sum() == 1
    assert calls[1].weights[5, 0] == 0


def test_other_layers_live(model):
    ids = tokens()
    trace, _ = traced(model, {"input_ids": ids})
    with record(model) as plain, torch.no_grad():
        model(ids)
    first = trace.layers[0]
    with record(model) as seen, replay(model, shifted(trace), live=trace.layers[1:]) as running, torch.no_grad():
        model(ids)
    assert running.num_routed == 12
    assert torch.equal(seen.indices[:, 0].long(), shifted(trace).indices[:, 0])
    part = trace.select(layers=[first])
    with replay(model, part, live=trace.layers[1:]), torch.no_grad():
        model(ids)
    assert not torch.equal(seen.indices[:, 1:], plain.indices[:, 1:])


def changed(trace, **changes):
    return dataclasses.replace(trace, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.select(layers=[0, 1]), r"The trace has 2 layers, the model 4.*'model.layers.2.mlp' is not in it"),
        (lambda t: changed(t, layers=("a", *t.layers[1:])), r"'model.layers.0.mlp' is not in it"),
        (lambda t: changed(t, num_experts=(16, 8, 8, 8)), "has 8 experts, and 16 in the trace"),
        (lambda t: changed(t, indices=t.indices[:, :, :1], weights=None), "sends each token to 2 experts, .* to 1"),
        (
            lambda t: changed(t, indices=torch.cat([t.indices, t.indices[..., :1]], dim=2), weights=None),
            "sends each token to 2 experts, and the trace to 3",
        ),
        (lambda t: t.select(tokens=torch.arange(12) < 8), "exhausted: it has 8 rows, 0 of them .* runs 12 tokens"),
        (lambda t: changed(t, calls=torch.arange(12) // 6), "Call 0 of the trace has 6 rows, and the model runs more"),
    ],
)
def test_a_trace_that_does_not_fit(model, change, message):
    ids = tokens()
    trace, values = traced(model, {"input_ids": ids})
    with pytest.raises(ValueError, match=message), replay(model, change(trace)), torch.no_grad():
        model(ids)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, values)


def test_too_few_and_too_many_calls(model):
    ids = tokens()
    trace, _ = traced(model, {"input_ids": ids})
    with torch.no_grad():
        with pytest.raises(ValueError, match="exhausted"), replay(model, trace):
            model(ids)
            model(ids)
        with pytest.raises(ValueError, match="12 rows, and only 0 of them were replayed"), replay(model, trace):
            pass
        with pytest.raises(ValueError, match="Call 0 of the trace has 6 rows more"), replay(model, trace):
            model(ids[:1])
        with pytest.raises(RuntimeError, match="mine"), replay(model, trace):
            raise RuntimeError("mine")


def test_a_forward_that_fails_gives_its_rows_back(model):
    ids = tokens()
    trace, values = traced(model, {"input_ids": ids})
    with replay(model, trace), torch.no_grad():
        handle = model.model.layers[3].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            model(ids)
        handle.remove()
        assert torch.equal(model(ids).logits, values)


def test_without_numbers_of_calls(model):
    """As from a serving system: rows in order, and nothing else."""
    batches = [tokens(1, 4), tokens(1, 3)]
    with record(model) as recording, torch.no_grad():
        values = [model(ids).logits for ids in batches]
    bare = Trace(recording.indices, recording.layers, recording.num_experts)
    with replay(model, bare), torch.no_grad():
        for ids, expected in zip(batches, values, strict=True):
            assert torch.equal(model(ids).logits, expected)


def test_families_that_cannot_be_replayed_say_why():
    for name, why in UNREPLAYED.items():
        model = tiny_model(name)
        trace, _ = traced(model, tiny_inputs(name))
        with pytest.raises(ValueError, match=f"can't be replayed: {why}"), replay(model, trace):
            pass
        with replay(model, trace, live=trace.layers):
            values_of(model, tiny_inputs(name))
            break_out = True
        assert break_out


def test_wrong_arguments(model):
    trace, _ = traced(model, {"input_ids": tokens()})
    with pytest.raises(TypeError, match="model must be"), replay("model", trace):
        pass
    with pytest.raises(TypeError, match=r"trace must be a moegate\.trace\.Trace"), replay(model, trace.indices):
        pass
    with pytest.raises(ValueError, match="live names 'mlp'"), replay(model, trace, live=["mlp"]):
        pass


def test_other_tokens_are_refused_but_for_padding(model):
    ids, mask = tokens(), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    trace, _ = traced(model, {"input_ids": ids, "attention_mask": mask})
    other = ids.clone()
    other[1, 4] = 60
    message = rf"its row 10 is token {int(ids[1, 4])}, and the model runs token 60 there \(1 of 12 differ\)"
    with pytest.raises(ValueError, match=message), replay(model, trace):
        model(other, attention_mask=mask)
    with pytest.raises(ValueError, match="The trace is of other tokens"), replay(model, trace):
        model(ids.flip(0), attention_mask=mask.flip(0))
    padded = ids.clone()
    padded[0, :2] = 61
    embedded = model.get_input_embeddings()(other)
    nameless = dataclasses.replace(trace, token_ids=None)
    for one, inputs in (
        (trace, {"input_ids": padded}),
        (trace, {"inputs_embeds": embedded}),
        (nameless, {"input_ids": other}),
    ):
        with replay(model, one) as running:
            model(**inputs, attention_mask=mask)
        assert running.row == 12
