"""``swap``: every family gives its own outputs on swapped routers and experts, and its own bits after ``undo``."""

import copy
import pickle

import pytest
import torch

pytest.importorskip("transformers")

from tiny_models import every_model, tiny_inputs, tiny_model
from transformers import AutoModelForCausalLM

import moegate
from moegate.hf import moe_layers, swap, unswap

# What is left alone, a tracked list: it may only get shorter.
ROUTERS_LEFT = {
    "dbrx", "doge", "jetmoe", "nllb_moe", "switch_transformers", "vitpose_backbone",
}  # fmt: skip
EXPERTS_LEFT = {"dbrx", "doge", "jetmoe", "nllb_moe", "switch_transformers", "vitpose_backbone"}


def first(output):
    values = output[0]
    return values[0] if isinstance(values, tuple | list) else values


def gradients(model, inputs):
    model.zero_grad()
    values = first(model(**inputs))
    direction = torch.randn(values.shape, generator=torch.Generator().manual_seed(3))
    (values.float() * direction).sum().backward()
    return values.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def watch_gates(model):
    """What the gates answer, call by call."""
    seen = []
    for layer in moe_layers(model):
        if layer.row.gate is not None:
            layer.gate.register_forward_hook(lambda _, args, answer: seen.append(answer))
    return seen


def bits(model, inputs):
    with torch.no_grad():
        return first(model(**inputs)).clone()


@pytest.mark.parametrize("name", every_model())
def test_outputs_and_gradients_are_the_models_own(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    model.set_experts_implementation("eager")
    expected, expected_grads = gradients(model, inputs)
    names = list(model.state_dict())
    with swap(model) as swapped:
        assert list(model.state_dict()) == names
        values, grads = gradients(model, inputs)
    for row in swapped.report:
        assert (row.router == "swapped") == (name not in ROUTERS_LEFT)
        assert (row.experts == "swapped") == (name not in EXPERTS_LEFT)
    assert (values - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert grads.keys() == expected_grads.keys()
    largest = max(grad.abs().max() for grad in expected_grads.values())
    for parameter, grad in grads.items():
        own = expected_grads[parameter]
        assert (grad - own).abs().max() <= 5e-4 * own.abs().max() + 1e-5 * largest, parameter
    again, again_grads = gradients(model, inputs)
    assert torch.equal(again, expected)
    assert all(torch.equal(again_grads[parameter], grad) for parameter, grad in expected_grads.items())


@pytest.mark.parametrize("name", [name for name in every_model() if name not in ROUTERS_LEFT | {"inkling2"}])
def test_gates_answer_in_the_types_of_the_family(name):
    model = tiny_model(name).bfloat16()
    inputs = {key: value.bfloat16() if value.is_floating_point() else value for key, value in tiny_inputs(name).items()}
    seen = watch_gates(model)
    bits(model, inputs)
    own = seen.copy()
    seen.clear()
    with swap(model, experts=False):
        bits(model, inputs)
    for theirs, ours in zip(own, seen, strict=True):
        assert [(part.dtype, part.shape) for part in ours] == [(part.dtype, part.shape) for part in theirs]
    for their_part, our_part in zip(own[0], seen[0], strict=True):
        if not our_part.is_floating_point():
            # Of equal logits either expert will do.
            distinct = own[0][0].sort().values.diff().min(dim=-1).values > 0
            assert torch.equal(our_part[distinct].sort().values, their_part[distinct].sort().values)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss", "llama4", "longcat_flash"])
def test_generates_the_same_tokens(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    inputs = inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}
    inputs["attention_mask"][0, :4] = 0
    told = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**inputs, **told)
    with swap(model):
        assert torch.equal(model.generate(**inputs, **told), expected)


@pytest.mark.parametrize("part", ["router", "experts"])
def test_one_part_alone(part):
    model, inputs = tiny_model("qwen3_moe"), tiny_inputs("qwen3_moe")
    expected = bits(model, inputs)
    swapped = swap(model, router=part == "router", experts=part == "experts")
    assert {getattr(row, part) for row in swapped.report} == {"swapped"}
    other = "experts" if part == "router" else "router"
    assert {getattr(row, other) for row in swapped.report} == {"left, as asked"}
    assert torch.allclose(bits(model, inputs), expected, atol=1e-5)


def test_another_rule_routes():
    model, inputs = tiny_model("mixtral"), tiny_inputs("mixtral")
    for experts in (True, False):
        narrow = copy.deepcopy(model)
        for layer in moe_layers(narrow):
            layer.gate.top_k = 1
        with swap(model, router=moegate.recipes.mixtral(top_k=1), experts=experts):
            assert torch.allclose(bits(model, inputs), bits(narrow, inputs), atol=1e-5)
    rule = moegate.RoutingRule(moegate.selection.TopK(3), moegate.scoring.Sigmoid())
    seen = watch_gates(model)
    with swap(model, router=rule):
        bits(model, inputs)
    logits, weights, index = seen[0]
    assert torch.equal(index, logits.topk(3).indices)
    assert torch.allclose(weights, logits.sigmoid().gather(1, index))


def test_a_rule_that_leaves_slots_empty():
    model, inputs = tiny_model("mixtral"), tiny_inputs("mixtral")
    rule = moegate.recipes.top_p(0.5)
    with pytest.raises(ValueError, match=r"may leave slots empty, which the experts of model.layers.0.mlp do not take"):
        swap(model, router=rule, experts=False)
    seen = watch_gates(model)
    with swap(model, router=rule):
        assert bits(model, inputs).isfinite().all()
    assert (seen[0][2] < 0).any()
    assert type(moe_layers(model)[0].gate).__name__ == "MixtralTopKRouter"


def test_noise_of_another_rule_acts_in_training_alone():
    model, inputs = tiny_model("mixtral"), tiny_inputs("mixtral")
    rule = moegate.recipes.switch(jitter=0.3)
    with swap(model, router=rule):
        assert torch.equal(bits(model, inputs), bits(model, inputs))
        model.train()
        assert not torch.equal(bits(model, inputs), bits(model, inputs))


def test_jitter_of_the_block_stays_the_blocks():
    model, inputs = tiny_model("mixtral", router_jitter_noise=0.2).train(), tiny_inputs("mixtral")
    torch.manual_seed(5)
    expected = bits(model, inputs)
    torch.manual_seed(5)
    with swap(model):
        assert torch.allclose(bits(model, inputs), expected, atol=1e-5)
    assert not torch.equal(bits(model, inputs), expected)


def test_ties_go_to_the_lowest_expert():
    model, inputs = tiny_model("qwen3_moe"), tiny_inputs("qwen3_moe")
    for layer in moe_layers(model):
        torch.nn.init.zeros_(layer.gate.weight)
    seen = watch_gates(model)
    with swap(model):
        bits(model, inputs)
    assert all(torch.equal(index, torch.tensor([0, 1]).expand(24, 2)) for _, _, index in seen)


def test_the_selection_bias_acts_and_may_move():
    model, inputs = tiny_model("deepseek_v3"), tiny_inputs("deepseek_v3")
    with swap(model):
        seen = watch_gates(model)
        for layer in moe_layers(model):
            layer.bias.copy_(torch.arange(8.0))
        bits(model, inputs)
    assert all(torch.equal(index.sort().values, torch.tensor([6, 7]).expand(24, 2)) for _, _, index in seen)


def test_checkpoints_load_both_ways(tmp_path):
    model, inputs = tiny_model("qwen3_moe"), tiny_inputs("qwen3_moe")
    expected = bits(model, inputs)
    with swap(model):
        ours = bits(model, inputs)
        model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    again.set_experts_implementation(model.config._experts_implementation)
    assert torch.equal(bits(again, inputs), expected)
    other = tiny_model("qwen3_moe", seed=1)
    with swap(other):
        other.load_state_dict(again.state_dict())
        assert torch.equal(bits(other, inputs), ours)


def test_router_logits_are_still_recorded():
    model, inputs = tiny_model("qwen3_moe"), tiny_inputs("qwen3_moe")
    with torch.no_grad():
        expected = model(**inputs, output_router_logits=True)
        with swap(model):
            ours = model(**inputs, output_router_logits=True)
    assert len(ours.router_logits) == 4
    for their_logits, our_logits in zip(expected.router_logits, ours.router_logits, strict=True):
        assert torch.allclose(our_logits, their_logits, atol=1e-5)
    assert torch.allclose(ours.aux_loss, expected.aux_loss, atol=1e-5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_swapped_and_their_own(again):
    model, inputs = tiny_model("deepseek_v3"), tiny_inputs("deepseek_v3")
    expected = bits(model, inputs)
    swapped = swap(model)
    ours = bits(model, inputs)
    twin = again(model)
    swapped.undo()
    assert torch.equal(bits(model, inputs), expected)
    assert torch.equal(bits(twin, inputs), ours)
    with torch.no_grad():
        moe_layers(model)[0].gate.weight.zero_()
    assert torch.equal(bits(twin, inputs), ours)
    unswap(twin)
    assert torch.equal(bits(twin, inputs), expected)
    assert {type(module) for module in twin.modules()} == {type(module) for module in model.modules()}


def test_undo_after_an_error_and_twice():
    model, inputs = tiny_model("mixtral"), tiny_inputs("mixtral")
    expected = bits(model, inputs)
    with pytest.raises(KeyError), swap(model) as swapped:
        raise KeyError
    swapped.undo()
    assert torch.equal(bits(model, inputs), expected)


def test_training_goes_on_across_swaps():
    model, inputs = tiny_model("mixtral").train(), tiny_inputs("mixtral")
    twin = copy.deepcopy(model)
    for each, swaps in ((model, True), (twin, False)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for step in range(4):
            if swaps and step == 1:
                swapped = swap(each)
            if swaps and step == 3:
                swapped.undo()
            optimizer.zero_grad()
            each(**inputs, labels=inputs["input_ids"]).loss.backward()
            optimizer.step()
    assert torch.allclose(bits(model, inputs), bits(twin, inputs), atol=1e-4)


@pytest.mark.usefixtures("compiler")
def test_a_swapped_block_compiles_in_one_graph():
    model, hidden = tiny_model("deepseek_v3"), torch.randn(1, 6, 32)
    with swap(model), torch.no_grad():
        block = moe_layers(model)[0].block
        expected = block(hidden)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(hidden), expected, atol=1e-5)


def test_offloaded_parts_are_left_alone():
    from accelerate import cpu_offload

    model, inputs = tiny_model("mixtral"), tiny_inputs("mixtral")
    cpu_offload(model, execution_device=torch.device("cpu"))
    expected = bits(model, inputs)
    swapped = swap(model)
    assert all("forward was replaced on the object" in row.router + row.experts for row in swapped.report)
    assert torch.equal(bits(model, inputs), expected)


def test_the_report_is_a_table():
    model = tiny_model("jetmoe")
    lines = str(swap(model)).splitlines()
    assert lines[0].split() == ["layer", "router", "experts"]
    assert len(lines) == 9
    assert lines[1].endswith("its gate sorts the tokens itself  its experts take tokens that its gate has sorted")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"router": 2}, "router must be True, False or a RoutingRule"), ({"experts": "moegate"}, "experts True or False")],
)
def test_arguments_of_another_type(arguments, said):
    with pytest.raises(TypeError, match=said):
        swap(tiny_model("mixtral"), **arguments)


def test_what_can_not_be_swapped():
    with pytest.raises(ValueError, match="Linear has no MoE layers"):
        swap(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        swap("mixtral")
    model = tiny_model("mixtral")
    with swap(model), pytest.raises(ValueError, match=r"swapped already: call undo\(\) first"):
        swap(model)
    swapped = swap(model, router=moegate.recipes.mixtral(top_k=9))
    assert "top_k=9 exceeds the 8 experts" in swapped.report[0].router


@pytest.mark.parametrize("name", ["inkling", "zaya"])
def test_a_rule_without_the_extra_classes_of_the_logits_is_refused(name):
    swapped = swap(tiny_model(name), router=moegate.RoutingRule(moegate.selection.TopK(1)))
    assert all(row.router.startswith("its logits are for extra=") for row in swapped.report)


def test_the_training_of_phi_moe_draws_as_its_own_gate_does():
    model, inputs = tiny_model("phimoe").train(), tiny_inputs("phimoe")
    torch.manual_seed(0)
    expected, expected_grads = gradients(model, inputs)
    torch.manual_seed(0)
    with swap(model):
        values, grads = gradients(model, inputs)
        assert not torch.equal(bits(model, inputs), values)
    assert torch.allclose(values, expected, atol=1e-4)
    for name in ("model.layers.1.mlp.router.weight", "model.layers.1.mlp.experts.down_proj"):
        assert torch.allclose(grads[name], expected_grads[name], rtol=1e-3, atol=1e-5)
    jittering = swap(tiny_model("phimoe", input_jitter_noise=0.1))
    assert "input_jitter_noise" in jittering.report[0].router


def test_what_is_recorded_is_what_the_swapped_experts_received():
    model, inputs = tiny_model("deepseek_v3"), tiny_inputs("deepseek_v3")
    with moegate.hf.record(model) as own:
        bits(model, inputs)
    with swap(model), moegate.hf.record(model) as ours:
        bits(model, inputs)
    assert torch.equal(ours.indices.sort(dim=-1).values, own.indices.sort(dim=-1).values)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "llama4"])
def test_the_number_of_experts_a_token_is_followed(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    before = bits(model, inputs)
    with moegate.hf.at_top_k(model, 3):
        expected = bits(model, inputs)
    assert not torch.allclose(expected, before, atol=1e-4)
    with swap(model):
        twin = copy.deepcopy(model)
        for one in (model, twin):
            with moegate.hf.at_top_k(one, 3), moegate.hf.record(one) as recording:
                assert torch.allclose(bits(one, inputs), expected, atol=1e-4)
            assert (recording.indices >= 0).sum(dim=-1).eq(3).all()
            assert torch.allclose(bits(one, inputs), before, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "llama4"])
@pytest.mark.parametrize("rule", [moegate.recipes.mixtral(top_k=3), moegate.recipes.top_p(0.9)])
def test_layers_have_the_rule_that_was_swapped_in(name, rule):
    model, inputs = tiny_model(name), tiny_inputs(name)
    seen = watch_gates(model)
    with swap(model, router=rule):
        assert {layer.rule for layer in moe_layers(model)} == {rule}
        with moegate.hf.record(model) as recording:
            values = bits(model, inputs)
        for number, answer in enumerate(seen):
            routing = moegate.route(answer[1] if name == "llama4" else answer[0], rule)
            mine = recording.indices[:, number].sort(dim=-1, descending=True).values
            theirs = routing.expert_index.sort(dim=-1, descending=True).values
            width = min(mine.shape[1], theirs.shape[1])
            assert torch.equal(mine[:, :width].long(), theirs[:, :width].long())
            assert (mine[:, width:] == -1).all()
            assert (theirs[:, width:] == -1).all()
        assert recording.trace.metadata["rules"][0] == rule.to_dict()
    assert rule not in {layer.rule for layer in moe_layers(model)}
    assert not torch.equal(bits(model, inputs), values)


def test_weights_of_a_replay_are_those_of_the_rule_that_was_swapped_in():
    rule = moegate.RoutingRule(moegate.selection.TopK(3), moegate.scoring.Sigmoid())
    model, other, inputs = tiny_model("mixtral"), tiny_model("mixtral", seed=1), tiny_inputs("mixtral")
    with swap(other, router=rule), moegate.hf.record(other) as recording:
        bits(other, inputs)
    seen = watch_gates(model)
    with (
        swap(model, router=rule),
        moegate.hf.record(model) as mine,
        moegate.hf.replay(model, recording.trace) as running,
    ):
        bits(model, inputs)
    assert running.num_changed
    for number, (logits, _, _) in enumerate(seen):
        index = recording.indices[:, number].long()
        torch.testing.assert_close(mine.weights[:, number], logits.sigmoid().gather(1, index))
