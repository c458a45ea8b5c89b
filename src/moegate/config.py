"""Model configurations as rules: the names that Hugging Face and others use, and their aliases.

A configuration often leaves out what its modelling code does: that Mixtral renormalises, or that DeepSeek-V3
uses a sigmoid. ``MODEL_TYPES`` holds that, checked against the models' own code; a model type that is not listed
is refused unless its configuration names both its scoring function and its normalisation, since a guess would
route wrongly without a sign. A dict without a model type is read with the defaults of the system whose names it
uses: those of Megatron-LM (``moe_router_...``), of torchtitan (``score_func``, ``route_norm``, ...), or else those
of Hugging Face.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from moegate.capacity import Capacity
from moegate.config_names import (
    ALIASES,
    COUNTS,
    MEGATRON_NAMES,
    NUMBERS,
    OTHER_NAMES,
    SWITCHES,
    TORCHTITAN_NAMES,
    UNLESS_FALSE,
)
from moegate.extra import Extra, NullExperts, SharedWeights
from moegate.model_types import MODEL_TYPES, OWN_NAMES, PARTS, SCORING_WORDS
from moegate.noise import InputJitter
from moegate.parts import check_integer, check_number, did_you_mean
from moegate.rule import RoutingRule
from moegate.scoring import Identity, ReLU, Score, Sigmoid, Softmax, SoftmaxSelected, SqrtSoftplus
from moegate.selection import GroupedTopK, ProductKeyTopK, SecondChoice, Selection, SparseMixer, TopK
from moegate.weighting import Weighting

__all__ = ["ALIASES", "MODEL_TYPES", "rule_from_config"]

_TORCHTITAN = {"scoring_func": "sigmoid", "norm_topk_prob": False, "topk_method": "noaux_tc"}
_GENERATION_TOP_K = 50
_INKLING_SHARED = 2

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
            without ``model_type`` must hold known names only; with one, names that look like a misspelt one are
            refused. A name whose value is None counts as absent.

    Raises:
        TypeError, ValueError: for an unknown name (with the nearest), two aliases that disagree, a model type whose
            scoring is not known, a setting that no rule holds, or values that do not fit.

    Example:
        >>> rule_from_config({"n_routed_experts": 256, "num_experts_per_tok": 8, "scoring_func": "sigmoid",
        ...                   "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        ...                   "topk_method": "noaux_tc"}) == __import__("moegate").recipes.deepseek_v3()
        True
    """
    values = _as_dict(config)
    _check_names(values)
    values = {name: value for name, value in values.items() if value is not None}
    _check_honoured(values)
    names = {name: value for name in ALIASES if (value := _read(values, name)) is not None}
    names = _completed(values, names)
    rule = RoutingRule(
        selection=_selection(names, values),
        score=_score(names),
        weighting=_weighting(names),
        noise=_noise(names),
        capacity=_capacity(names, values),
        rank_by=names.get("rank_by", "logits"),
        extra=_extra(names, values),
    )
    if "num_experts" in names:
        rule.check(names["num_experts"])
    return rule


def _as_dict(config: Any) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        if not hasattr(config, "to_dict"):
            raise TypeError(
                f"config must be a dict or have a to_dict(), as Hugging Face configurations do; got {config!r}."
            )
        config = (config.get_text_config() if hasattr(config, "get_text_config") else config).to_dict()
    values = dict(config)
    part = values.get(PARTS.get(str(values.get("model_type")), ""))
    return {**part, "model_type": values["model_type"]} if isinstance(part, Mapping) else values


def _check_names(values: Mapping[str, Any]) -> None:
    """A name must be known; beside a model type, which brings many others, it must not be almost a known one."""
    model_type = values.get("model_type")
    deciding = {alias for aliases in ALIASES.values() for alias in aliases}
    known = deciding | OTHER_NAMES | UNLESS_FALSE.keys()
    for name in values:
        if not isinstance(name, str):
            raise TypeError(f"The names of a configuration must be text, got {name!r}.")
        if name in known or name in OWN_NAMES.get(str(model_type), ()):
            continue
        if model_type is None or difflib.get_close_matches(name, deciding, n=1, cutoff=0.85):
            raise ValueError(f"Unknown configuration name {name!r}.{did_you_mean(name, known)}")


def _check_honoured(values: Mapping[str, Any]) -> None:
    for name, why in UNLESS_FALSE.items():
        if values.get(name):
            raise ValueError(f"{name}={values[name]!r} can't be honoured: {why}.")
    if "sinkhorn" in str(values.get("moe_router_load_balancing_type")):
        raise ValueError(
            "moe_router_load_balancing_type='sinkhorn' can't be honoured: it selects on a balanced plan in training, "
            "which no rule of a configuration holds."
        )


def _same_in_all_layers(value: object) -> object:
    """A list with a value for each layer, all equal, as that value; anything else as it is."""
    if isinstance(value, list) and value and all(type(one) is int and one == value[0] for one in value):
        return value[0]
    return value


def _read(values: Mapping[str, Any], name: str) -> Any:
    """The value under a name or one of its aliases; aliases that disagree are an error."""
    found = {alias: values[alias] for alias in ALIASES[name] if alias in values}
    if name == "num_experts_per_tok":
        # A list of numbers of experts is no such list: Ernie has one for each kind of input.
        found = {alias: _same_in_all_layers(value) for alias, value in found.items()}
    # Older configurations carry the top_k of text generation, 50 by default, beside the name for experts per token.
    if len(found) > 1 and ("model_type" in values or found.get("top_k") == _GENERATION_TOP_K):
        found.pop("top_k", None)
    for alias, value in found.items():
        _check_value(alias, name, value)
    distinct = set(found.values())
    if len(distinct) > 1:
        raise ValueError(f"These names mean the same and disagree: {found}. Keep one of them.")
    return distinct.pop() if distinct else None


def _check_value(alias: str, name: str, value: object) -> None:
    if name in COUNTS:
        check_integer(alias, value, least=1)
    elif name in NUMBERS:
        check_number(alias, value)
    elif name in SWITCHES and not isinstance(value, bool):
        raise TypeError(f"{alias} must be True or False, got {value!r}.")
    elif name not in SWITCHES and not isinstance(value, str):
        raise TypeError(f"{alias} must be text, got {value!r}.")


def _completed(values: Mapping[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """The names with what the model's code, or the system whose names these are, adds to them."""
    if "model_type" in names:
        return names | _implied(names["model_type"], names)
    megatron, torchtitan = sorted(MEGATRON_NAMES & values.keys()), sorted(TORCHTITAN_NAMES & values.keys())
    if megatron and torchtitan:
        raise ValueError(
            f"{megatron[0]} is a name of Megatron-LM and {torchtitan[0]} one of torchtitan, and their defaults "
            "differ: use the names of one of them."
        )
    if megatron:
        return names | _implied_by_megatron(names)
    return _TORCHTITAN | names if torchtitan else names


def _implied(model_type: str, names: Mapping[str, Any]) -> dict[str, Any]:
    if model_type in MODEL_TYPES:
        _check_scoring(model_type, names)
        scoring = names.get("scoring_func", "softmax")
        words = SCORING_WORDS.get(model_type, {})
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


def _implied_by_megatron(names: Mapping[str, Any]) -> dict[str, Any]:
    """Megatron's softmax goes over the chosen logits unless pre_softmax; its other scores are normalised for k > 1."""
    scoring = names.get("scoring_func", "softmax")
    if scoring == "softmax" and not names.get("moe_router_pre_softmax", False):
        scoring = "softmax_selected"
    several = names.get("num_experts_per_tok", 1) > 1
    sums_to_one = scoring == "softmax_selected" or (scoring != "softmax" and several)
    implied = {"scoring_func": scoring, "norm_topk_prob": sums_to_one, **_megatron_groups(names)}
    for name in ("norm_topk_prob", "topk_method"):
        if name in names and names[name] != implied.get(name, names[name]):
            raise ValueError(
                f"{name}={names[name]!r}, but Megatron-LM, whose names are here too, routes as {name}="
                f"{implied[name]!r} does: use the names of one system."
            )
    # A softmax over the chosen sums to one already; dividing it again would only round.
    return implied | {"norm_topk_prob": sums_to_one and scoring != "softmax_selected"}


def _megatron_groups(names: Mapping[str, Any]) -> dict[str, str]:
    """Megatron scores a group by the sum of its best ``k // groups_kept`` scores: the best, or the top two."""
    if not {"num_experts_per_tok", "n_group", "topk_group"} <= names.keys() or names["n_group"] == 1:
        return {}
    top_k, kept = names["num_experts_per_tok"], names["topk_group"]
    summed = top_k // kept
    if summed not in {1, 2}:
        raise ValueError(
            f"Megatron-LM scores a group by the sum of its best moe_router_topk // moe_router_group_topk = {top_k} // "
            f"{kept} = {summed} scores; that can't be expressed: a GroupedTopK sums one ('max') or two ('top2_sum')."
        )
    return {"topk_method": "group_limited_greedy" if summed == 1 else "noaux_tc"}


def _selection(names: Mapping[str, Any], values: Mapping[str, Any]) -> Selection:
    if "num_experts_per_tok" not in names:
        raise ValueError(
            f"The configuration does not say how many experts a token goes to: expected one of "
            f"{', '.join(ALIASES['num_experts_per_tok'])}."
        )
    top_k = names["num_experts_per_tok"]
    if names.get("selection") == "sparse_mixer":
        return SparseMixer(top_k, epsilon=float(names.get("router_jitter_noise", SparseMixer.epsilon)))
    if names.get("selection") == "product_keys":
        return ProductKeyTopK(top_k)
    if names.get("selection") == "second_choice" and values.get("second_expert_policy", "all") != "all":
        return SecondChoice(values["second_expert_policy"])
    num_groups, method = names.get("n_group", 1), names.get("topk_method")
    if num_groups == 1 or method == "greedy":
        return TopK(top_k)
    kept = names.get("topk_group")
    if kept is None:
        raise ValueError(f"n_group={num_groups} needs topk_group: how many groups are kept, from 1 to {num_groups}.")
    score = {None: _group_score_of(names), "noaux_tc": "top2_sum", "group_limited_greedy": "max"}
    if method not in score:
        raise ValueError(f"Unknown topk_method {method!r}.{did_you_mean(str(method), [key for key in score if key])}")
    return GroupedTopK(
        top_k,
        num_groups=num_groups,
        groups_kept=kept,
        group_score=score[method],
        dropped_score=names.get("dropped_score"),
    )


def _group_score_of(names: Mapping[str, Any]) -> str:
    """Without a topk_method: softmax routers score a group by its maximum, the others by its top two."""
    return "max" if names.get("scoring_func", "softmax") == "softmax" else "top2_sum"


def _score(names: Mapping[str, Any]) -> Score:
    name = names.get("scoring_func", "softmax")
    if name not in _SCORES:
        raise ValueError(f"Unknown scoring_func {name!r}.{did_you_mean(str(name), _SCORES)}")
    return _SCORES[name]


def _weighting(names: Mapping[str, Any]) -> Weighting:
    order = names.get("moe_normalize_expert_weights")
    return Weighting(
        renormalize=names.get("norm_topk_prob", order is not None),
        order=1.0 if order is None else float(order),
        floor=float(names.get("moe_norm_min", 0.0)),
        eps=names.get("eps", Weighting.eps),
        scale=float(names.get("routed_scaling_factor", 1.0)),
        apply_to="input" if names.get("score_before_experts", False) else "output",
    )


def _extra(names: Mapping[str, Any], values: Mapping[str, Any]) -> Extra | None:
    """Other model types have shared experts too, without logits."""
    if names.get("extra") == "shared_weights":
        return SharedWeights(values.get("n_shared_experts", _INKLING_SHARED))
    return NullExperts(1) if names.get("extra") == "null_expert" else None


def _noise(names: Mapping[str, Any]) -> InputJitter | None:
    """SparseMixer's ``router_jitter_noise`` is a distance between logits and no noise."""
    epsilon = names.get("input_jitter_noise")
    if not epsilon and names.get("selection") != "sparse_mixer":
        epsilon = names.get("router_jitter_noise")
    return InputJitter(float(epsilon)) if epsilon else None


def _capacity(names: Mapping[str, Any], values: Mapping[str, Any]) -> Capacity | None:
    kind = names.get("capacity")
    if kind == "switch" and "expert_capacity" in values:
        return Capacity(places=values["expert_capacity"], scope="sequence")
    return _capacity_of_nllb(names, values) if kind == "nllb" else _capacity_of_megatron(names)


def _capacity_of_nllb(names: Mapping[str, Any], values: Mapping[str, Any]) -> Capacity:
    """A fixed number of places, or twice the even share; in evaluation a fraction of the tokens."""
    places, fraction = values.get("expert_capacity"), values.get("moe_eval_capacity_token_fraction", 1.0)
    check_number("moe_eval_capacity_token_fraction", fraction)
    return Capacity(
        1.0,
        multiple_of=1 if places else 2,
        places=places,
        eval_factor=fraction * names.get("num_experts", 128) / 2 if fraction > 0 else None,
        drop="batch_priority" if values.get("batch_prioritized_routing") else "position",
        weigh="before" if values.get("normalize_router_prob_before_dropping") else "after",
    )


def _capacity_of_megatron(names: Mapping[str, Any]) -> Capacity | None:
    """There, a negative factor is none."""
    policy = names.get("moe_token_drop_policy", "probs")
    orders = {"probs": "weight", "position": "position"}
    if policy not in orders:
        raise ValueError(f"Unknown moe_token_drop_policy {policy!r}.{did_you_mean(policy, orders)}")
    factor = names.get("moe_expert_capacity_factor", -1)
    if factor < 0:
        return None
    if policy == "position" and names["num_experts_per_tok"] > 1:
        raise ValueError(
            "moe_token_drop_policy='position' with several experts per token can't be honoured: Megatron-LM serves "
            "earlier tokens first whatever their choice, Capacity(drop='position') first choices first."
        )
    return Capacity(factor=float(factor), drop=orders[policy])
