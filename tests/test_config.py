"""Configurations as rules, checked against the router modules of transformers with random weights."""

import dataclasses
import importlib
import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import moegate
from moegate.config import ALIASES, MODEL_TYPES
from moegate.noise import InputJitter
from moegate.rule import RoutingRule
from moegate.scoring import Identity, ReLU, Sigmoid, Softmax, SoftmaxSelected, SqrtSoftplus
from moegate.selection import GroupedTopK, TopK

from_config = RoutingRule.from_config
HIDDEN, NUM_EXPERTS = 32, 8
SIZES = {
    "hidden_size": HIDDEN,
    "num_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 3,
    "moe_topk": 3,
    "moe_k": 3,
    "n_group": 4,
    "topk_group": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "routed_scaling_factor": 1.7,
    "topk_method": "group_limited_greedy",
    "moe_intermediate_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
}
ROUTERS = [
    "aria_text",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "flint",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v_moe_text",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "granitemoeshared",
    "hy_v3",
    "jamba",
    "laguna",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "mistral4",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_omni_moe_text",
    "qwen3_vl_moe_text",
    "solar_open",
]


def small_config(model_type: str, **changes: Any) -> Any:
    """The configuration of a model type at eight experts, with those of ``SIZES`` that it knows."""
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    config_class = auto.CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    return config_class(**{name: value for name, value in {**SIZES, **changes}.items() if name in known})


def router_of(config: Any) -> nn.Module:
    """The router class of the configuration's modelling module, with random weights and biases."""
    modeling = importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    classes = [
        value
        for name, value in inspect.getmembers(modeling, inspect.isclass)
        if re.search(r"top_?k_?router$", name, re.IGNORECASE) and value.__module__ == modeling.__name__
    ]
    router: nn.Module = classes[0](config)
    with torch.no_grad():
        for values in [*router.parameters(), *router.buffers()]:
            values.normal_(std=0.5)
    return router


def by_transformers(router: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """Its weights, spread over all experts, and its selection bias."""
    named = {**dict(router.named_parameters()), **dict(router.named_buffers())}
    bias = next((value.detach().flatten() for name, value in named.items() if "correction" in name), None)
    inputs = [hidden]
    if "e_score_correction_bias" in inspect.signature(router.forward).parameters:
        bias = torch.randn(NUM_EXPERTS)
        inputs.append(bias)
    with torch.no_grad():
        _, weights, index = router(*inputs)
    return torch.zeros(len(hidden), NUM_EXPERTS).scatter(1, index, weights.float()), bias


@pytest.mark.parametrize("model_type", ROUTERS)
@pytest.mark.parametrize("renormalize", [False, True])
def test_routers_of_transformers_route_alike(model_type: str, renormalize: bool) -> None:
    config = small_config(model_type, norm_topk_prob=renormalize)
    router, hidden = router_of(config), torch.randn(64, HIDDEN)
    expected, bias = by_transformers(router, hidden)
    logits = nn.functional.linear(hidden, router.weight, getattr(router, "bias", None)).detach()
    routing = moegate.route(logits, from_config(config), bias=bias)
    ours = torch.zeros(64, NUM_EXPERTS).scatter(1, routing.expert_index, routing.weights)
    assert ours.ne(0).equal(expected.ne(0))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_router_of_cohere_with_sigmoids(renormalize: bool) -> None:
    config = small_config("cohere2_moe", norm_topk_prob=renormalize, expert_selection_fn="sigmoid")
    router, hidden = router_of(config), torch.randn(64, HIDDEN)
    expected, _ = by_transformers(router, hidden)
    routing = moegate.route(hidden @ router.weight.detach().T, from_config(config))
    ours = torch.zeros(64, NUM_EXPERTS).scatter(1, routing.expert_index, routing.weights)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_the_router_of_llama4_weighs_the_input() -> None:
    modeling = pytest.importorskip("transformers.models.llama4.modeling_llama4")
    config = small_config("llama4_text", num_experts_per_tok=2)
    router, hidden = modeling.Llama4Router(config), torch.randn(64, HIDDEN)
    rule = from_config(config)
    with torch.no_grad():
        expected, logits = router(hidden)
    routing = moegate.route(logits, rule)
    ours = torch.zeros(64, NUM_EXPERTS).scatter(1, routing.expert_index, routing.weights)
    torch.testing.assert_close(ours, expected)
    assert rule.weighting.apply_to == "input"


DEFAULTS = {
    "mixtral": moegate.recipes.mixtral(2),
    "qwen3_moe": moegate.recipes.olmoe(8),  # as its configuration class has it; the published models renormalise
    "olmoe": moegate.recipes.olmoe(8),
    "deepseek_v3": moegate.recipes.deepseek_v3(),
    "gpt_oss": moegate.recipes.gpt_oss(4),
    "llama4_text": moegate.recipes.llama4(1),
    "granitemoe": moegate.recipes.gpt_oss(2),
}


@pytest.mark.parametrize("model_type", sorted(DEFAULTS))
def test_default_configurations_are_the_recipes(model_type: str) -> None:
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    assert from_config(auto.CONFIG_MAPPING[model_type]()) == DEFAULTS[model_type]


def test_a_configuration_with_a_text_part_is_read_there() -> None:
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    assert from_config(auto.CONFIG_MAPPING["llama4"]()) == moegate.recipes.llama4()


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
def test_every_listed_model_type_makes_a_rule(model_type: str) -> None:
    names = {"num_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2}
    rule = from_config({"model_type": model_type, **names})
    assert rule.selection.top_k == 2


@pytest.mark.parametrize("name", sorted(set(ALIASES) - {"model_type"}))
def test_every_alias_means_the_same(name: str) -> None:
    names: dict[str, Any] = {
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "scoring_func": "sigmoid",
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "topk_method": "noaux_tc",
        "router_jitter_noise": 0.1,
    }
    expected = from_config(names)
    assert expected == RoutingRule(
        GroupedTopK(4, num_groups=4, groups_kept=2),
        score=Sigmoid(),
        weighting=moegate.Weighting(renormalize=True, scale=2.5),
        noise=InputJitter(0.1),
    )
    value = names.pop(name)
    assert name in {"num_experts", "topk_method"} or from_config_or_error(names) != expected
    for alias in ALIASES[name]:
        assert from_config({**names, alias: value}) == expected


def from_config_or_error(names: dict[str, Any]) -> RoutingRule | str:
    try:
        return from_config(names)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("softmax", Softmax()),
        ("sigmoid", Sigmoid()),
        ("sqrtsoftplus", SqrtSoftplus()),
        ("softmax_selected", SoftmaxSelected()),
        ("identity", Identity()),
        ("relu", ReLU()),
    ],
)
def test_scoring_functions_by_name(name: str, score: moegate.scoring.Score) -> None:
    assert from_config({"num_experts_per_tok": 2, "scoring_func": name}).score == score


@pytest.mark.parametrize(
    ("method", "selection"),
    [
        ("greedy", TopK(2)),
        ("group_limited_greedy", GroupedTopK(2, num_groups=4, groups_kept=2, group_score="max")),
        ("noaux_tc", GroupedTopK(2, num_groups=4, groups_kept=2, group_score="top2_sum")),
        (None, GroupedTopK(2, num_groups=4, groups_kept=2, group_score="max")),
    ],
)
def test_ways_to_limit_groups(method: str | None, selection: moegate.selection.Selection) -> None:
    rule = from_config({"num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "topk_method": method})
    assert rule.selection == selection


def test_one_group_is_none() -> None:
    for groups in (1, None):
        assert from_config({"num_experts_per_tok": 2, "n_group": groups, "topk_group": 1}).selection == TopK(2)


def test_names_without_a_part_in_the_rule_are_left_alone() -> None:
    names = {"num_experts_per_tok": 2, "hidden_size": 64, "n_shared_experts": 1, "router_aux_loss_coef": 0.01}
    assert from_config(names) == RoutingRule(TopK(2))


def test_aliases_that_agree_may_stand_together() -> None:
    assert from_config({"num_experts_per_tok": 2, "top_k": 2}).selection == TopK(2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"num_experts_per_tokens": 2},
            r"Unknown configuration name 'num_experts_per_tokens'. Did you mean 'num_experts_per_tok",
        ),
        ({"num_experts_per_tok": 2, "norm_topk_probs": True}, "Did you mean 'norm_topk_prob'"),
        ({"num_experts_per_tok": 2, "top_k": 4}, r"mean the same and disagree: .*'num_experts_per_tok': 2.*'top_k': 4"),
        ({"num_experts": 8, "n_routed_experts": 16, "top_k": 2}, "disagree"),
        ({"num_experts": 8}, "does not say how many experts a token goes to: expected one of num_experts_per_tok"),
        ({"num_experts_per_tok": 9, "num_experts": 8}, "top_k=9 exceeds the 8 experts"),
        ({"num_experts_per_tok": 2, "num_experts": 10, "n_group": 4, "topk_group": 2}, "10 experts do not divide"),
        ({"num_experts_per_tok": 2, "n_group": 4}, "n_group=4 needs topk_group: how many groups are kept, from 1 to 4"),
        (
            {"num_experts_per_tok": 2, "scoring_func": "sigmod"},
            r"Unknown scoring_func 'sigmod'. Did you mean 'sigmoid'\?",
        ),
        (
            {"num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "topk_method": "noaux"},
            r"Unknown topk_method 'noaux'. Did you mean 'noaux_tc'\?",
        ),
        ({"model_type": "qwen3moe", "num_experts_per_tok": 2}, r"'qwen3moe' is not known.* Did you mean 'qwen3_moe'\?"),
        ({"model_type": "llama", "num_experts_per_tok": 2}, "'llama' is not known"),
    ],
)
def test_configurations_that_make_no_rule(names: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_config(names)


@pytest.mark.parametrize("config", [None, 8, "mixtral", [("num_experts", 8)]])
def test_what_is_no_configuration(config: object) -> None:
    with pytest.raises(TypeError, match="config must be a dict or have a to_dict"):
        from_config(config)


def test_a_model_type_that_is_not_listed_may_say_it_all() -> None:
    names = {"model_type": "my_moe", "scoring_func": "sigmoid", "norm_topk_prob": True, "num_experts_per_tok": 4}
    assert from_config(names) == RoutingRule(TopK(4), score=Sigmoid(), weighting=moegate.Weighting(renormalize=True))
