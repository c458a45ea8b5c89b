"""Configurations as rules, checked against the router modules of transformers with random weights."""

import dataclasses
import importlib
import inspect
import re
from typing import Any

import numpy as np
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
    assert rule.selection.top_k == (1 if model_type == "switch_transformers" else 2)


TESTED_ELSEWHERE = {
    "model_type",
    "score_before_experts",
    "moe_router_pre_softmax",
    "moe_expert_capacity_factor",
    "moe_token_drop_policy",
    "input_jitter_noise",
    "moe_normalize_expert_weights",
}


@pytest.mark.parametrize("name", sorted(set(ALIASES) - TESTED_ELSEWHERE))
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
        "moe_norm_min": 0.2,
    }
    expected = from_config(names)
    assert expected == RoutingRule(
        GroupedTopK(4, num_groups=4, groups_kept=2),
        score=Sigmoid(),
        weighting=moegate.Weighting(renormalize=True, scale=2.5, floor=0.2),
        noise=InputJitter(0.1),
    )
    value = names.pop(name)
    assert name in {"num_experts", "topk_method"} or from_config_or_error(names) != expected
    for alias in ALIASES[name]:
        assert from_config({**names, alias: value}) == expected


@pytest.mark.parametrize("fraction", ["half", True, [0.5], float("nan")])
def test_the_places_of_nllb_in_evaluation_are_a_number(fraction: object) -> None:
    with pytest.raises((TypeError, ValueError), match="moe_eval_capacity_token_fraction must be a"):
        from_config({"model_type": "nllb-moe", "num_experts": 8, "moe_eval_capacity_token_fraction": fraction})


def test_phimoe_goes_to_two_experts_whatever_its_configuration_says() -> None:
    assert from_config({"model_type": "phimoe", "num_experts_per_tok": 3}) == moegate.recipes.phimoe(2)


def test_the_noise_of_phimoe_is_not_its_jitter() -> None:
    names = {"model_type": "phimoe", "num_experts_per_tok": 2, "router_jitter_noise": 0.02}
    assert from_config(names) == moegate.recipes.phimoe(epsilon=0.02)
    assert from_config(names | {"input_jitter_noise": 0.1}).noise == InputJitter(0.1)
    assert from_config({"num_experts_per_tok": 2, "input_jitter_noise": 0.1}).noise == InputJitter(0.1)


def test_dbrx_keeps_the_names_of_its_router_in_a_part() -> None:
    part = {"moe_num_experts": 16, "moe_top_k": 4, "moe_normalize_expert_weights": 1.0, "moe_jitter_eps": 0.1}
    rule = from_config({"model_type": "dbrx", "d_model": 64, "ffn_config": {"model_type": "", **part}})
    assert rule == RoutingRule(TopK(4), weighting=moegate.Weighting(renormalize=True), noise=InputJitter(0.1))
    bare = from_config({"model_type": "dbrx", "ffn_config": part | {"moe_normalize_expert_weights": None}})
    assert not bare.weighting.renormalize


def test_zaya_has_a_class_to_skip_and_inkling_weighs_its_shared_experts() -> None:
    zaya = {"model_type": "zaya", "num_experts": 16, "num_experts_per_tok": 1}
    assert from_config(zaya) == moegate.recipes.zaya()
    inkling = {"model_type": "inkling_text", "n_routed_experts": 256, "num_experts_per_tok": 6, "route_scale": 8.0}
    assert from_config(inkling | {"n_shared_experts": 3}) == moegate.recipes.inkling(num_shared=3)


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
        (
            {"model_type": "muse_spark_text", "num_experts_per_tok": 2, "output_multiplier": 0.2},
            r"output_multiplier=0.2 can't be honoured: .*multiply them in the gate and leave the name out",
        ),
        ({"model_type": "vitpose_backbone", "num_experts": 8}, "'vitpose_backbone' is not known"),
        ({"num_experts_per_tok": 2, "n_group": -1}, "n_group must be at least 1, got -1"),
        ({"num_experts_per_tok": 2, "num_expert_groups": 0}, "num_expert_groups must be at least 1, got 0"),
        ({"num_experts_per_tok": 2, "num_experts": -8}, "num_experts must be at least 1, got -8"),
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


# --- Megatron-LM -------------------------------------------------------------------------------------------------


def by_megatron(logits: np.ndarray, names: dict[str, Any], bias: np.ndarray | None = None) -> np.ndarray:
    """The weights of Megatron-LM's routing, spread over all experts, one token at a time in float64."""
    top_k, groups, kept = (
        names["moe_router_topk"],
        names.get("moe_router_num_groups"),
        names.get("moe_router_group_topk"),
    )
    function = names.get("moe_router_score_function", "softmax")
    weights = np.zeros_like(logits)
    for token, z in enumerate(logits):
        softmax = np.exp(z) / np.exp(z).sum()
        raw = {"sigmoid": 1 / (1 + np.exp(-z)), "sqrtsoftplus": np.sqrt(np.log1p(np.exp(z))), "softmax": softmax}[
            function
        ]
        post_softmax = function == "softmax" and not names.get("moe_router_pre_softmax", False)
        ranking = (z if post_softmax else raw) + (0 if bias is None else bias)
        if groups:
            members = ranking.reshape(groups, -1)
            score = np.sort(members, axis=1)[:, ::-1][:, : top_k // kept].sum(axis=1)
            dropped = np.argsort(-score)[kept:]
            members = members.copy()
            members[dropped] = -np.inf
            ranking = members.reshape(-1)
        chosen = np.argsort(-ranking)[:top_k]
        if post_softmax:
            weights[token, chosen] = np.exp(z[chosen]) / np.exp(z[chosen]).sum()
        elif function == "softmax" or top_k == 1:
            weights[token, chosen] = raw[chosen]
        else:
            weights[token, chosen] = raw[chosen] / (raw[chosen].sum() + 1e-20)
    return weights * (names.get("moe_router_topk_scaling_factor") or 1.0)


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, None), (4, None), (1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (5, 2), (6, 3)]
)
@pytest.mark.parametrize(
    "scoring",
    [
        {},
        {"moe_router_score_function": "softmax", "moe_router_pre_softmax": False},
        {"moe_router_pre_softmax": True},
        {"moe_router_score_function": "sigmoid", "moe_router_topk_scaling_factor": 2.5},
        {"moe_router_score_function": "sqrtsoftplus", "moe_router_topk_scaling_factor": None},
    ],
)
def test_names_of_megatron_route_as_megatron_does(scoring: dict[str, Any], top_k: int, kept: int | None) -> None:
    names = {"num_moe_experts": 16, "moe_router_topk": top_k, **scoring}
    if kept is not None:
        names |= {"moe_router_num_groups": 4, "moe_router_group_topk": kept}
    logits = torch.randn(64, 16, dtype=torch.float64)
    biased = scoring.get("moe_router_score_function") in {"sigmoid", "sqrtsoftplus"}
    bias = torch.randn(16, dtype=torch.float64) * 0.3 if biased else None
    routing = moegate.route(logits, from_config(names), bias=bias)
    ours = torch.zeros_like(logits).scatter(1, routing.expert_index, routing.weights.double())
    theirs = by_megatron(logits.numpy(), names, None if bias is None else bias.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-8)


def test_softmax_of_megatron_is_over_the_chosen_unless_told() -> None:
    assert from_config({"moe_router_topk": 2}) == moegate.recipes.gpt_oss(2)
    assert from_config({"moe_router_topk": 2, "moe_router_pre_softmax": True}) == RoutingRule(TopK(2), score=Softmax())
    assert from_config({"num_experts_per_tok": 2, "moe_router_dtype": "fp32"}) == moegate.recipes.gpt_oss(2)


@pytest.mark.parametrize(("top_k", "kept"), [(6, 2), (1, 2), (9, 3)])
def test_group_scores_of_megatron_that_no_rule_holds(top_k: int, kept: int) -> None:
    names = {"moe_router_topk": top_k, "moe_router_num_groups": 4, "moe_router_group_topk": kept}
    with pytest.raises(ValueError, match=rf"{top_k} // {kept} = {top_k // kept} scores; that can't be expressed"):
        from_config(names)


@pytest.mark.parametrize(
    "names",
    [
        {"moe_router_topk": 2, "norm_topk_prob": False},
        {"moe_router_topk": 2, "norm_topk_prob": True, "moe_router_pre_softmax": True},
        {"moe_router_topk": 2, "norm_topk_prob": False, "scoring_func": "sigmoid"},
        {"moe_router_topk": 4, "n_group": 4, "moe_router_group_topk": 2, "topk_method": "group_limited_greedy"},
    ],
)
def test_names_of_hugging_face_that_contradict_megatron(names: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="but Megatron-LM, whose names are here too, routes as"):
        from_config(names)


def test_capacity_of_megatron() -> None:
    names = {"moe_router_topk": 2, "moe_expert_capacity_factor": 1.5}
    assert from_config(names).capacity == moegate.Capacity(1.5, drop="weight")
    assert from_config({**names, "moe_token_drop_policy": "probs"}).capacity == moegate.Capacity(1.5, drop="weight")
    first = {"moe_router_topk": 1, "moe_expert_capacity_factor": 1, "moe_token_drop_policy": "position"}
    assert from_config(first).capacity == moegate.Capacity(1.0, drop="position")
    for factor in (None, -1.0):
        assert from_config({**names, "moe_expert_capacity_factor": factor}).capacity is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"moe_router_force_load_balancing": True}, "moe_router_force_load_balancing=True can't be honoured"),
        ({"moe_expert_rank_capacity_factor": 1.5}, "moe_expert_rank_capacity_factor=1.5 can't be honoured"),
        ({"moe_router_load_balancing_type": "sinkhorn"}, "'sinkhorn' can't be honoured"),
        ({"moe_router_load_balancing_type": ["aux_loss", "sinkhorn"]}, "'sinkhorn' can't be honoured"),
        ({"moe_token_drop_policy": "prob"}, r"Unknown moe_token_drop_policy 'prob'. Did you mean 'probs'\?"),
        ({"moe_expert_capacity_factor": 1.0, "moe_token_drop_policy": "position"}, "'position' with several experts"),
        ({"_debug_force_load_balance": True}, "_debug_force_load_balance=True can't be honoured"),
        ({"score_func": "sigmoid"}, "moe_router_topk is a name of Megatron-LM and score_func one of torchtitan"),
    ],
)
def test_settings_that_no_rule_holds(names: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_config({"moe_router_topk": 2, **names})


def test_names_of_megatron_without_a_part_in_the_rule() -> None:
    names = {
        "moe_router_enable_expert_bias": True,
        "moe_router_bias_update_rate": 1e-3,
        "moe_aux_loss_coeff": 1e-2,
        "moe_z_loss_coeff": 1e-3,
        "moe_router_force_load_balancing": False,
        "moe_enable_routing_replay": True,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": ["aux_loss", "seq_aux_loss"],
    }
    assert from_config({"moe_router_topk": 2, **names}) == from_config({"moe_router_topk": 2})


# --- torchtitan --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        ({"route_norm": False}, RoutingRule(TopK(4), score=Sigmoid())),
        ({"load_balance_coeff": 1e-3}, RoutingRule(TopK(4), score=Sigmoid())),
        ({"score_func": "softmax"}, RoutingRule(TopK(4))),
        (
            {"route_norm": True, "route_scale": 2.5},
            RoutingRule(TopK(4), score=Sigmoid(), weighting=moegate.Weighting(renormalize=True, scale=2.5)),
        ),
        (
            {"score_func": "softmax", "num_expert_groups": 4, "num_limited_groups": 2},
            RoutingRule(GroupedTopK(4, num_groups=4, groups_kept=2, group_score="top2_sum")),
        ),
        (
            {"score_before_experts": True},
            RoutingRule(TopK(4), score=Sigmoid(), weighting=moegate.Weighting(apply_to="input")),
        ),
        ({"score_before_experts": False}, RoutingRule(TopK(4), score=Sigmoid())),
    ],
)
def test_names_of_torchtitan(names: dict[str, Any], rule: RoutingRule) -> None:
    assert from_config({"num_experts": 16, "top_k": 4, **names}) == rule


@pytest.mark.parametrize("name", ["moe_apply_probs_on_input", "moe_apply_router_weight_on_input"])
def test_weights_on_the_input(name: str) -> None:
    for on_input in (True, False):
        weighting = from_config({"num_experts_per_tok": 1, name: on_input}).weighting
        assert weighting.apply_to == ("input" if on_input else "output")


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"norm_topk_prob": "false"}, "norm_topk_prob must be True or False, got 'false'"),
        ({"route_norm": 1}, "route_norm must be True or False, got 1"),
        ({"num_experts": "8"}, "num_experts must be an integer, got '8'"),
        ({"n_routed_experts": 8.0}, "n_routed_experts must be an integer, got 8.0"),
        ({"num_experts": True}, "num_experts must be an integer, got True"),
        ({"moe_num_experts": [8, 8]}, r"moe_num_experts must be an integer, got \[8, 8\]"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor must be a number, got '2.5'"),
        ({"router_jitter_noise": "0.1"}, "router_jitter_noise must be a number, got '0.1'"),
        ({"scoring_func": 1}, "scoring_func must be text, got 1"),
        ({"model_type": 3}, "model_type must be text, got 3"),
        ({8: 2}, "The names of a configuration must be text, got 8"),
    ],
)
def test_values_of_the_wrong_type(names: dict[Any, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        from_config({"num_experts_per_tok": 2, **names})


def test_none_is_absent() -> None:
    names = dict.fromkeys(alias for aliases in ALIASES.values() for alias in aliases)
    assert from_config({**names, "num_experts_per_tok": 2}) == RoutingRule(TopK(2))


# --- beside a model type -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "name", "meant"),
    [
        ("qwen3_moe", "norm_topk_probs", "norm_topk_prob"),
        ("qwen3_moe", "num_expert_per_tok", "num_experts_per_tok"),
        ("deepseek_v3", "n_groups", "n_group"),
        ("deepseek_v3", "routed_scale_factor", "routed_scaling_factor"),
        ("deepseek_v3", "top_k_group", "topk_group"),
    ],
)
def test_a_misspelt_name_beside_a_model_type(model_type: str, name: str, meant: str) -> None:
    names = {"model_type": model_type, "num_experts_per_tok": 2, "rope_theta": 1e4, name: None}
    with pytest.raises(ValueError, match=f"Unknown configuration name '{name}'. Did you mean '{meant}'"):
        from_config(names)


def test_the_groups_of_mamba_are_no_misspelling() -> None:
    assert from_config({"model_type": "nemotron_h", "num_experts_per_tok": 2, "n_groups": 8}).selection == TopK(2)


def test_top_k_of_text_generation_is_not_that_of_the_router() -> None:
    assert from_config({"model_type": "mixtral", "num_experts_per_tok": 2, "top_k": 40}) == moegate.recipes.mixtral(2)
    assert from_config({"num_experts_per_tok": 2, "top_k": 50}).selection == TopK(2)
    assert from_config({"num_experts": 64, "top_k": 50}).selection == TopK(50)
