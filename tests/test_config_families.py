"""Every model type of the table against the router of transformers, on random logits and with a random bias."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import moegate
from moegate.config import ALIASES, MODEL_TYPES

transformers = pytest.importorskip("transformers")

# Their routers are not modules that return logits, weights and indices; the layers are compared elsewhere.
NOT_A_ROUTER_MODULE = {"llama4", "llama4_text", "jetmoe"}
# Their routers have another name, another signature or another shape.
ROUTERS_OF_THEIR_OWN = {"afmoe", "hunyuan_v1_moe", "lfm2_moe", "longcat_flash", "switch_transformers"}
GROUPED = sorted(model_type for model_type, implied in MODEL_TYPES.items() if implied.get("topk_method") == "noaux_tc")


def small_config(model_type, **changes):
    config = transformers.CONFIG_MAPPING[model_type]().get_text_config()
    for name, value in changes.items():
        setattr(config, name, value)
    if getattr(config, "num_experts_per_tok", 0) is None:
        config.num_experts_per_tok = 6
    return config


def router_of(model_type, config):
    """A router module of the model type with random weights, and its selection bias if it has one."""
    folder = Path(inspect.getfile(type(config))).parent.name
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    name = next(
        name for name in dir(module) if re.fullmatch(r"\w*(TopKRouter|TopkRouter|TokenChoiceRouter|Top1Router)", name)
    )
    router = getattr(module, name)(config).eval()
    for tensor in [*router.parameters(), *router.buffers()]:
        tensor.data = torch.randn_like(tensor.float()) * 0.1
    named = [*router.named_parameters(), *router.named_buffers()]
    bias = next((tensor.flatten() for name, tensor in named if "correction" in name), None)
    return router, bias


def outputs(router, hidden, bias, num_experts):
    """``(logits, weights, indices)`` whatever their order, and the bias that was used."""
    arguments = {}
    if "e_score_correction_bias" in inspect.signature(router.forward).parameters:
        bias = arguments["e_score_correction_bias"] = torch.randn(num_experts) * 0.1
    tensors = [tensor for tensor in router(hidden, **arguments) if torch.is_tensor(tensor)]
    index = next(tensor for tensor in tensors if not tensor.is_floating_point())
    logits = next(tensor for tensor in tensors if tensor.is_floating_point() and tensor.shape[-1] == num_experts)
    weights = next(tensor for tensor in tensors if tensor.is_floating_point() and tensor.shape == index.shape)
    return logits.float(), weights.float(), index, bias


def assert_parity(model_type, config):
    values = config.to_dict()
    num_experts = next(values[name] for name in ALIASES["num_experts"] if isinstance(values.get(name), int))
    rule = moegate.RoutingRule.from_config(config)
    router, bias = router_of(model_type, config)
    hidden = torch.randn(64, config.hidden_size)
    with torch.no_grad():
        logits, weights, index, bias = outputs(router, hidden, bias, num_experts)
        # What a gate would hand to the rule: a router that does more to its logits has no rule.
        linear = torch.nn.functional.linear(hidden, router.weight, getattr(router, "bias", None))
    torch.testing.assert_close(logits, linear, rtol=1e-5, atol=1e-5)
    routing = moegate.route(logits, rule, bias=bias)
    theirs = torch.zeros_like(logits).scatter(1, index, weights)
    ours = torch.zeros_like(logits).scatter(1, routing.expert_index, routing.weights)
    assert torch.equal(routing.expert_index.sort(-1).values, index.sort(-1).values)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "model_type", sorted(MODEL_TYPES.keys() - NOT_A_ROUTER_MODULE - ROUTERS_OF_THEIR_OWN - {"dots1"})
)
def test_default_configuration(model_type):
    assert_parity(model_type, small_config(model_type))


@pytest.mark.parametrize("model_type", sorted(set(GROUPED) - {"dots1"}))
def test_with_groups(model_type):
    config = small_config(model_type, n_group=4, topk_group=2, num_experts_per_tok=3)
    assert_parity(model_type, config)


@pytest.mark.parametrize("groups", [{}, {"n_group": 4, "topk_group": 2}])
def test_dots1_needs_a_number_of_experts(groups):
    # Its default configuration has no experts.
    config = small_config("dots1", n_routed_experts=32, num_experts_per_tok=4, **groups)
    assert_parity("dots1", config)


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_ocr2_text", "unlimited_ocr_text"])
def test_group_limited_greedy(model_type):
    config = small_config(model_type, topk_method="group_limited_greedy", n_group=4, topk_group=2)
    assert isinstance(moegate.RoutingRule.from_config(config).selection, moegate.selection.GroupedTopK)
    assert_parity(model_type, config)


def test_table_is_in_step_with_transformers():
    missing = MODEL_TYPES.keys() - set(transformers.CONFIG_MAPPING.keys())
    assert not missing


def test_a_score_that_the_models_code_does_not_use_is_refused():
    with pytest.raises(ValueError, match=r"mixtral.*uses 'softmax'"):
        moegate.RoutingRule.from_config({"model_type": "mixtral", "num_experts_per_tok": 2, "scoring_func": "sigmoid"})


def spread(routing, num_experts):
    empty = torch.zeros(routing.num_tokens, num_experts)
    return empty.scatter(1, routing.expert_index, routing.weights)


def test_afmoe():
    config = small_config("afmoe", route_scale=2.5)
    router, bias = router_of("afmoe", config)[0], torch.randn(config.num_experts) * 0.1
    with torch.no_grad():
        logits, weights, index = router(torch.randn(1, 64, config.hidden_size), bias)
    routing = moegate.route(logits, moegate.RoutingRule.from_config(config), bias=bias)
    theirs = torch.zeros_like(logits).scatter(1, index, weights)
    torch.testing.assert_close(spread(routing, config.num_experts), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("shift", [0.0, -12.0])
def test_lfm2_moe(renormalize, shift):
    # Its eps of 1e-6 shows where all sigmoids are small.
    config = small_config("lfm2_moe", norm_topk_prob=renormalize, routed_scaling_factor=1.5)
    router, bias = router_of("lfm2_moe", config)[0], torch.randn(config.num_experts) * 0.1
    hidden = torch.randn(64, config.hidden_size)
    hidden[:, 0] = 1.0
    router.weight.data[:, 0] = shift
    with torch.no_grad():
        logits, weights, index = router(hidden, bias)
    routing = moegate.route(logits, moegate.RoutingRule.from_config(config), bias=bias)
    theirs = torch.zeros_like(logits).scatter(1, index, weights)
    torch.testing.assert_close(spread(routing, config.num_experts), theirs, rtol=1e-5, atol=1e-9)


def test_longcat_flash_with_its_zero_experts():
    config = small_config("longcat_flash", n_routed_experts=24, zero_expert_num=8, hidden_size=64)
    router, bias = router_of("longcat_flash", config)
    with torch.no_grad():
        logits, weights, index = router(torch.randn(64, 64))
    routing = moegate.route(logits, moegate.RoutingRule.from_config(config), bias=bias)
    theirs = torch.zeros(64, 32).scatter(1, index, weights)
    torch.testing.assert_close(spread(routing, 32), theirs, rtol=1e-6, atol=1e-7)


def test_hunyuan_with_a_list_that_says_the_same_for_each_layer():
    modeling = pytest.importorskip("transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe")
    config = small_config("hunyuan_v1_moe", num_experts=16, moe_topk=[4, 4], hidden_size=64)
    router, hidden = modeling.HunYuanMoEV1Gate(config, layer_idx=1), torch.randn(64, 64)
    with torch.no_grad():
        logits, weights, index = router(hidden)
    routing = moegate.route(logits, moegate.RoutingRule.from_config(config))
    theirs = torch.zeros(64, 16).scatter(1, index, weights)
    torch.testing.assert_close(spread(routing, 16), theirs, rtol=1e-6, atol=1e-7)
    config.moe_topk = [4, 2]
    with pytest.raises(TypeError, match=r"moe_topk must be an integer, got \[4, 2\]"):
        moegate.RoutingRule.from_config(config)


def test_switch_transformers_with_room_for_all():
    config = small_config("switch_transformers", expert_capacity=64, router_jitter_noise=0.05)
    rule = moegate.RoutingRule.from_config(config)
    router, _ = router_of("switch_transformers", config)
    with torch.no_grad():
        chosen, probabilities, logits = router(torch.randn(1, 64, config.hidden_size))
    routing = moegate.route(logits[0], rule)
    torch.testing.assert_close(spread(routing, config.num_experts), (chosen * probabilities)[0])
    assert rule.noise == moegate.noise.InputJitter(0.05)


class Weights(torch.nn.Module):
    """In place of the experts: the weights that they are given, one column per expert."""

    def forward(self, hidden, index, weights):
        return torch.zeros_like(hidden).scatter(1, index, weights)


class Nothing(torch.nn.Module):
    def forward(self, hidden):
        return torch.zeros_like(hidden)


@pytest.mark.parametrize(
    ("model_type", "scale", "block"),
    [
        ("laguna", "moe_routed_scaling_factor", "LagunaSparseMoeBlock"),
        ("step3p7", "moe_router_scaling_factor", "Step3p7SparseMoeBlock"),
    ],
)
def test_the_scale_that_a_block_applies(model_type, scale, block):
    config = transformers.CONFIG_MAPPING[model_type]().get_text_config()
    setattr(config, scale, 2.5)
    config.hidden_size = num_experts = getattr(config, "num_local_experts", None) or config.num_experts
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    arguments = [config, 0] if model_type == "step3p7" else [config]
    with torch.device("meta"):
        layer = getattr(module, block)(*arguments)
    layer.experts, layer.shared_experts = Weights(), Nothing()
    layer.gate, bias = router_of(model_type, config)
    hidden = torch.randn(1, 16, num_experts)
    with torch.no_grad():
        theirs = layer(hidden)[0]
        logits = hidden[0] @ layer.gate.weight.T
    routing = moegate.route(logits, moegate.RoutingRule.from_config(config), bias=bias)
    torch.testing.assert_close(spread(routing, num_experts), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES.keys()))
def test_no_name_of_a_default_configuration_looks_misspelt(model_type):
    config = transformers.CONFIG_MAPPING[model_type]().get_text_config()
    if getattr(config, "num_experts_per_tok", 1) is None:
        config.num_experts_per_tok = 6
    values = config.to_dict()
    rule = moegate.RoutingRule.from_config(values)
    assert rule == moegate.RoutingRule.from_config(config)
    if model_type != "switch_transformers":
        assert rule == moegate.RoutingRule.from_config({**values, "top_k": 50})


def test_a_soft_cap_on_the_logits_is_refused():
    config = transformers.CONFIG_MAPPING["laguna"](moe_router_logit_softcapping=30.0)
    with pytest.raises(ValueError, match=r"moe_router_logit_softcapping=30.0 can't be honoured"):
        moegate.RoutingRule.from_config(config)
