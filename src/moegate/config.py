"""Model configurations as rules: the names that Hugging Face and others use, and their aliases.

A configuration often leaves out what its modelling code does: that Mixtral renormalises, or that DeepSeek-V3
uses a sigmoid. ``MODEL_TYPES`` holds that, checked against the models' own code; a model type that is not listed
is refused unless its configuration names both its scoring function and its normalisation, since a guess would
route wrongly without a sign.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from moegate.noise import InputJitter
from moegate.parts import did_you_mean
from moegate.rule import RoutingRule
from moegate.scoring import Identity, ReLU, Score, Sigmoid, Softmax, SoftmaxSelected, SqrtSoftplus
from moegate.selection import GroupedTopK, Selection, TopK
from moegate.weighting import Weighting

__all__ = ["ALIASES", "MODEL_TYPES", "rule_from_config"]

ALIASES: dict[str, tuple[str, ...]] = {
    "num_experts": (
        "num_experts",
        "n_routed_experts",
        "num_local_experts",
        "moe_num_experts",
        "num_routed_experts",
    ),
    "num_experts_per_tok": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "top_k",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        "num_selected_experts",
        "moe_router_topk",
    ),
    "scoring_func": (
        "scoring_func",
        "score_func",
        "score_function",
        "moe_router_score_function",
        "router_score_function",
        "expert_selection_fn",
    ),
    "n_group": ("n_group", "num_groups", "num_expert_groups", "moe_router_num_groups"),
    "topk_group": ("topk_group", "groups_kept", "num_limited_groups", "moe_router_group_topk"),
    "norm_topk_prob": ("norm_topk_prob", "route_norm", "norm_topk", "renormalize", "moe_norm_topk_prob"),
    "routed_scaling_factor": (
        "routed_scaling_factor",
        "router_scaling_factor",
        "route_scale",
        "moe_router_topk_scaling_factor",
    ),
    "topk_method": ("topk_method",),
    "router_jitter_noise": ("router_jitter_noise",),
    "model_type": ("model_type",),
}
"""The names that decide a rule, each with the aliases that other configurations use."""

_OTHER_NAMES = frozenset(
    (
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "n_shared_experts",
        "num_shared_experts",
        "router_aux_loss_coef",
        "router_z_loss_coef",
        "output_router_logits",
        "decoder_sparse_step",
        "first_k_dense_replace",
        "mlp_only_layers",
        "mlp_layer_types",
        "expert_capacity",
        "num_hidden_layers",
        "hidden_act",
        "aux_loss_alpha",
        "seq_aux",
        "moe_layer_freq",
    )
)
"""Names of a mixture of experts that have no part in its rule; they are accepted and left alone."""

_SOFTMAX = {"scoring_func": "softmax"}
_SOFTMAX_RENORMALIZED = {"scoring_func": "softmax", "norm_topk_prob": True}
_SOFTMAX_PLAIN = {"scoring_func": "softmax", "norm_topk_prob": False}
_SOFTMAX_SELECTED = {"scoring_func": "softmax_selected"}
_SIGMOID_RENORMALIZED = {"scoring_func": "sigmoid", "norm_topk_prob": True}
_SIGMOID_GROUPED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
_SIGMOID_ON_INPUT = {"scoring_func": "sigmoid", "norm_topk_prob": False, "apply_to": "input"}
MODEL_TYPES: dict[str, dict[str, Any]] = {
    "aria_text": _SOFTMAX_RENORMALIZED,
    "axk1": _SIGMOID_GROUPED,
    "axk2": _SIGMOID_GROUPED,
    "cohere2_moe": {},
    "deepseek_ocr2_text": _SOFTMAX_PLAIN,
    "deepseek_v2": _SOFTMAX_PLAIN,
    "deepseek_v3": _SIGMOID_GROUPED,
    "deepseek_v32": _SIGMOID_GROUPED,
    "dots1": _SIGMOID_GROUPED,
    "dots3_note_text": _SIGMOID_GROUPED,
    "ernie4_5_moe": _SOFTMAX_RENORMALIZED,
    "ernie4_5_vl_moe_text": _SOFTMAX_RENORMALIZED,
    "exaone_moe": _SIGMOID_GROUPED,
    "flex_olmo": _SOFTMAX,
    "flint": {"scoring_func": "sigmoid"},
    "glm4_moe": _SIGMOID_GROUPED,
    "glm4_moe_lite": _SIGMOID_GROUPED,
    "glm4v_moe_text": _SIGMOID_GROUPED,
    "glm5_next_text": _SIGMOID_GROUPED,
    "glm_moe_dsa": _SIGMOID_GROUPED,
    "gpt_oss": _SOFTMAX_SELECTED,
    "granitemoe": _SOFTMAX_SELECTED,
    "granitemoe_swa": _SOFTMAX_SELECTED,
    "granitemoehybrid": _SOFTMAX_SELECTED,
    "granitemoeshared": _SOFTMAX_SELECTED,
    "hy_v3": _SIGMOID_RENORMALIZED,
    "hy_v4": _SIGMOID_GROUPED,
    "jamba": _SOFTMAX_PLAIN,
    "jetmoe": _SOFTMAX_SELECTED,
    "laguna": _SIGMOID_RENORMALIZED,
    "llama4": _SIGMOID_ON_INPUT,
    "llama4_text": _SIGMOID_ON_INPUT,
    "mellum": _SOFTMAX,
    "mimo_v2_flash": _SIGMOID_GROUPED,
    "minimax": _SOFTMAX_RENORMALIZED,
    "minimax_m2": _SIGMOID_RENORMALIZED,
    "mistral4": {"scoring_func": "softmax", "topk_method": "noaux_tc"},
    "mistral_large4_text": {"scoring_func": "softmax", "norm_topk_prob": True, "topk_method": "noaux_tc"},
    "mixtral": _SOFTMAX_RENORMALIZED,
    "muse_spark_text": _SIGMOID_RENORMALIZED,
    "nemotron_h": _SIGMOID_GROUPED,
    "olmoe": _SOFTMAX,
    "qwen2_moe": _SOFTMAX,
    "qwen3_5_moe_text": _SOFTMAX_RENORMALIZED,
    "qwen3_moe": _SOFTMAX,
    "qwen3_next": _SOFTMAX,
    "qwen3_omni_moe_text": _SOFTMAX,
    "qwen3_vl_moe_text": _SOFTMAX_RENORMALIZED,
    "qwen4_exp_text": _SOFTMAX,
    "solar_open": _SIGMOID_GROUPED,
    "unlimited_ocr_text": _SOFTMAX_PLAIN,
}
"""What a model's code does and its configuration does not say, by model type."""

# Cohere's softmax goes over the chosen experts, whatever norm_topk_prob says; its sigmoid is everyone's.
_SCORING_WORDS: dict[str, dict[str, str]] = {"cohere2_moe": {"softmax": "softmax_selected"}}

# Some configurations hold a list, a value per layer, under a name: that does not decide one rule.
_SCALARS = (bool, int, float, str)

_SCORES: dict[str, Score] = {
    "softmax": Softmax(),
    "softmax_selected": SoftmaxSelected(),
    "sigmoid": Sigmoid(),
    "sqrtsoftplus": SqrtSoftplus(),
    "sqrt_softplus": SqrtSoftplus(),
    "identity": Identity(),
    "relu": ReLU(),
}


def rule_from_config(config: Any) -> RoutingRule:
    """The rule of a model configuration.

    Args:
        config: a dict of names, or an object with ``to_dict``, such as a Hugging Face ``PretrainedConfig``. A dict
            without ``model_type`` must hold known names only.

    Raises:
        TypeError, ValueError: for an unknown name (with the nearest), two aliases that disagree, a model type whose
            scoring is not known, or numbers that do not fit.

    Example:
        >>> rule_from_config({"n_routed_experts": 256, "num_experts_per_tok": 8, "scoring_func": "sigmoid",
        ...                   "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        ...                   "topk_method": "noaux_tc"}) == __import__("moegate").recipes.deepseek_v3()
        True
    """
    values = _as_dict(config)
    model_type = values.get("model_type")
    if model_type is None:
        _check_names(values)
    names = {name: value for name in ALIASES if (value := _read(values, name)) is not None}
    if model_type is not None:
        names |= _implied(str(model_type), names)
    rule = RoutingRule(
        selection=_selection(names),
        score=_score(names),
        weighting=_weighting(names),
        noise=InputJitter(names["router_jitter_noise"]) if names.get("router_jitter_noise") else None,
    )
    if "num_experts" in names:
        rule.check(names["num_experts"])
    return rule


def _as_dict(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if not hasattr(config, "to_dict"):
        raise TypeError(
            f"config must be a dict or have a to_dict(), as Hugging Face configurations do; got {config!r}."
        )
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return dict(text_config.to_dict())


def _check_names(values: Mapping[str, Any]) -> None:
    known = {alias for aliases in ALIASES.values() for alias in aliases} | _OTHER_NAMES
    for name in values:
        if name not in known:
            raise ValueError(f"Unknown configuration name {name!r}.{did_you_mean(name, known)}")


def _read(values: Mapping[str, Any], name: str) -> Any:
    """The value under a name or one of its aliases; aliases that disagree are an error."""
    found = {alias: values[alias] for alias in ALIASES[name] if isinstance(values.get(alias), _SCALARS)}
    distinct = set(found.values())
    if len(distinct) > 1:
        raise ValueError(f"These names mean the same and disagree: {found}. Keep one of them.")
    return distinct.pop() if distinct else None


def _implied(model_type: str, names: Mapping[str, Any]) -> dict[str, Any]:
    if model_type in MODEL_TYPES:
        _check_scoring(model_type, names)
        scoring = names.get("scoring_func", "softmax")
        words = _SCORING_WORDS.get(model_type, {})
        return ({"scoring_func": words[scoring]} if scoring in words else {}) | MODEL_TYPES[model_type]
    if "scoring_func" in names and "norm_topk_prob" in names:
        return {}
    raise ValueError(
        f"The model type {model_type!r} is not known, and its configuration does not say how its router scores and "
        f"normalises.{_nearest_type(model_type)} Read it in the model's code and pass the routing names as a dict, "
        "with scoring_func and norm_topk_prob and without model_type."
    )


def _check_scoring(model_type: str, names: Mapping[str, Any]) -> None:
    """A configuration that names another score than its model's code uses would be read wrongly either way."""
    named, used = names.get("scoring_func"), MODEL_TYPES[model_type].get("scoring_func")
    if named in _SCORES and used in _SCORES and _SCORES[named] != _SCORES[used]:
        raise ValueError(
            f"scoring_func={named!r}, but the code of the model type {model_type!r} uses {used!r}: "
            "leave scoring_func out, or pass the routing names without model_type."
        )


def _nearest_type(model_type: str) -> str:
    nearest = difflib.get_close_matches(model_type, MODEL_TYPES, n=1, cutoff=0.8)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def _selection(names: Mapping[str, Any]) -> Selection:
    if "num_experts_per_tok" not in names:
        raise ValueError(
            f"The configuration does not say how many experts a token goes to: expected one of "
            f"{', '.join(ALIASES['num_experts_per_tok'])}."
        )
    top_k = names["num_experts_per_tok"]
    num_groups, method = names.get("n_group") or 1, names.get("topk_method")
    if num_groups == 1 or method == "greedy":
        return TopK(top_k)
    kept = names.get("topk_group")
    if kept is None:
        raise ValueError(f"n_group={num_groups} needs topk_group: how many groups are kept, from 1 to {num_groups}.")
    score = {None: _group_score_of(names), "noaux_tc": "top2_sum", "group_limited_greedy": "max"}
    if method not in score:
        raise ValueError(f"Unknown topk_method {method!r}.{did_you_mean(str(method), [key for key in score if key])}")
    return GroupedTopK(top_k, num_groups=num_groups, groups_kept=kept, group_score=score[method])


def _group_score_of(names: Mapping[str, Any]) -> str:
    """Without a topk_method: softmax routers score a group by its maximum, the others by its top two."""
    return "max" if names.get("scoring_func", "softmax") == "softmax" else "top2_sum"


def _score(names: Mapping[str, Any]) -> Score:
    name = names.get("scoring_func", "softmax")
    if name not in _SCORES:
        raise ValueError(f"Unknown scoring_func {name!r}.{did_you_mean(str(name), _SCORES)}")
    return _SCORES[name]


def _weighting(names: Mapping[str, Any]) -> Weighting:
    return Weighting(
        renormalize=bool(names.get("norm_topk_prob", False)),
        scale=float(names.get("routed_scaling_factor", 1.0)),
        apply_to=names.get("apply_to", "output"),
    )
