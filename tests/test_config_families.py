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
    name = next(name for name in dir(module) if re.fullmatch(r"\w*(TopKRouter|TopkRouter)", name))
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
    with torch.no_grad():
        logits, weights, index, bias = outputs(router, torch.randn(64, config.hidden_size), bias, num_experts)
    routing = moegate.route(logits, rule, bias=bias)
    theirs = torch.zeros_like(logits).scatter(1, index, weights)
    ours = torch.zeros_like(logits).scatter(1, routing.expert_index, routing.weights)
    assert torch.equal(routing.expert_index.sort(-1).values, index.sort(-1).values)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES.keys() - NOT_A_ROUTER_MODULE - {"dots1"}))
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
