"""Finding the MoE layers of a model: in the order in which they run, through whatever is wrapped around them."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers
from tiny_models import every_model, tiny_config, tiny_inputs, tiny_model

from moegate.hf import moe_layers
from moegate.selection import Hash, TopK


def names(model):
    return [layer.name for layer in moe_layers(model)]


@pytest.mark.parametrize("name", every_model())
def test_layers_are_in_the_order_in_which_they_run(name):
    model, ran = tiny_model(name), []
    layers = moe_layers(model)
    for number, layer in enumerate(layers):
        layer.experts.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        model(**tiny_inputs(name))
    assert list(dict.fromkeys(ran)) == list(range(len(layers)))


def test_the_eyes_of_dots_run_before_its_text():
    text, vision = tiny_config("dots3_note"), tiny_config("dots3_note vision")
    audio = {"hidden_size": 16, "adapter_input_size": 16, "adapter_out_dim": 32}
    audio |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Dots3NoteConfig(text_config=text, vision_config=vision, audio_config=audio)
    with torch.device("meta"):
        model = transformers.Dots3NoteModel(config)
    found = names(model)
    assert found[0] == "vision_tower.blocks.1.mlp"
    assert found[-1] == "language_model.layers.3.mlp"
    assert len(found) == 6


def test_a_dense_model_has_none():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
    assert moe_layers(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2))) == []
    assert moe_layers(nn.Linear(2, 2)) == []
    assert moe_layers(tiny_model("gemma4", enable_moe_block=False)) == []
    assert moe_layers(tiny_model("doge", is_moe=False)) == []


@pytest.mark.parametrize("model", [None, "mixtral", 3, [nn.Linear(2, 2)]])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        moe_layers(model)


class Tower(nn.Module):
    """What stands around a model: PEFT and FSDP hold it under such names."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, on their first import
@pytest.mark.parametrize("name", ["glm4_moe", "switch_transformers", "ernie4_5_vl_moe", "gemma4"])
def test_names_are_the_same_however_the_model_is_wrapped(name):
    model = tiny_model(name)
    plain = names(model)
    for wrapped in (
        Tower(module=model),
        torch.compile(model),
        Tower(base_model=Tower(model=model)),
        Tower(_fsdp_wrapped_module=model),
        torch.compile(Tower(module=model)),
    ):
        layers = moe_layers(wrapped)
        assert [layer.name for layer in layers] == plain
        for layer in layers:
            assert wrapped.get_submodule(layer.path) is layer.block
            assert layer.block is model.get_submodule(layer.name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, on their first import
def test_names_in_a_model_that_is_wrapped_layer_by_layer():
    model = tiny_model("glm4_moe")
    plain, biases = names(model), [layer.bias for layer in moe_layers(model)]
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer) if number % 2 else Tower(_checkpoint_wrapped_module=layer)
    layers = moe_layers(model)
    assert [layer.name for layer in layers] == plain
    assert layers[0].path == "model.layers.1._orig_mod.mlp"
    assert all(layer.bias is bias for layer, bias in zip(layers, biases, strict=True))


def test_parts_that_are_wrapped_are_seen_through():
    model = tiny_model("glm4_moe")
    before = moe_layers(model)[0]
    gate, experts, rule = before.gate, before.experts, before.rule
    before.block.gate, before.block.experts = Tower(base_layer=gate), Tower(base_layer=Tower(_orig_mod=experts))
    layer = moe_layers(model)[0]
    assert layer.gate is gate
    assert layer.experts is experts
    assert layer.bias is gate.e_score_correction_bias
    assert (layer.num_experts, layer.top_k, layer.rule) == (8, 2, rule)


def test_two_models_side_by_side_keep_their_names_apart():
    both = Tower(teacher=tiny_model("mixtral"), student=tiny_model("glm4_moe"))
    assert names(both)[:1] == ["teacher.model.layers.0.mlp"]
    assert names(both)[-1:] == ["student.model.layers.3.mlp"]


def test_a_block_that_stands_twice_in_a_model_is_one_layer():
    model = tiny_model("mixtral")
    model.model.layers[2] = model.model.layers[0]
    assert names(model) == [f"model.layers.{number}.mlp" for number in (0, 1, 3)]


def test_a_class_derived_from_a_block_is_a_block():
    model = tiny_model("mixtral")
    block = model.model.layers[1].mlp
    block.__class__ = type("FSDPMixtralSparseMoeBlock", (type(block),), {})
    assert len(moe_layers(model)) == 4


def test_code_from_outside_that_shares_a_name_only_is_no_block():
    # The DeepSeek-V3 of the hub keeps its experts in a list, which nothing calls.
    kind = type("DeepseekV3MoE", (nn.Module,), {})
    model = tiny_model("mixtral")
    stranger = kind()
    stranger.gate, stranger.experts = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])
    model.model.layers[1].mlp = stranger
    assert names(model) == [f"model.layers.{number}.mlp" for number in (0, 2, 3)]


def test_a_block_without_a_configuration_around_it_is_refused():
    block = tiny_model("mixtral").model.layers[0].mlp
    with pytest.raises(ValueError, match="No module around a MixtralSparseMoeBlock has a config"):
        moe_layers(block)
    # One that keeps its configuration itself is found.
    assert names(tiny_model("glm4_moe").model.layers[1].mlp) == [""]


def test_layers_that_differ_have_rules_of_their_own():
    vision = moe_layers(tiny_model("dots3_note vision"))
    assert [layer.num_experts for layer in vision] == [4, 8, 6]
    assert [layer.config.num_local_experts for layer in vision] == [4, 8, 6]
    hunyuan = moe_layers(tiny_model("hunyuan_v1_moe", moe_topk=[1, 2, 3, 4]))
    assert [layer.top_k for layer in hunyuan] == [1, 2, 3, 4]
    assert [layer.rule.selection for layer in hunyuan] == [TopK(1), TopK(2), TopK(3), TopK(4)]
    hashed = moe_layers(tiny_model("deepseek_v4"))
    assert [type(layer.rule.selection) for layer in hashed] == [Hash, Hash, TopK, TopK]
    assert [layer.hash_table is None for layer in hashed] == [False, False, True, True]
    assert [layer.bias is None for layer in hashed] == [True, True, False, False]


def test_a_top_k_that_was_changed_on_the_gate_is_the_models():
    model = tiny_model("mixtral")
    for layer in moe_layers(model):
        layer.gate.top_k = 4
    assert all(layer.top_k == layer.rule.selection.top_k == 4 for layer in moe_layers(model))


@pytest.mark.parametrize("name", ["ernie4_5_moe", "glm4_moe", "afmoe", "hy_v3", "zaya"])
def test_a_bias_changed_in_place_is_the_models(name):
    model = tiny_model(name)
    layer = moe_layers(model)[0]
    with torch.no_grad():
        layer.bias.add_(1.5)
    state = [value for key, value in model.state_dict().items() if key.startswith(layer.name) and "bias" in key]
    assert any(torch.equal(value.view(-1), layer.bias) for value in state)
    assert layer.bias.numel() == (9 if name == "zaya" else 8)


def test_what_has_no_gate_or_no_rule_says_so():
    layer = moe_layers(tiny_model("vitpose_backbone"))[0]
    assert (layer.num_experts, layer.top_k) == (3, 1)
    with pytest.raises(ValueError, match="has no gate: the caller names the data set of an image"):
        _ = layer.gate
    with pytest.raises(ValueError, match="has no rule: nothing routes"):
        _ = layer.rule


def test_longcat_counts_the_experts_that_return_what_they_read():
    assert moe_layers(tiny_model("longcat_flash"))[0].num_experts == 12
    assert moe_layers(tiny_model("zaya"))[0].num_experts == 8
