"""Numbers, configurations and routing rules in plain words."""

from collections.abc import Mapping
from typing import Any

from moegate.report.records import Run, Setting

# How each part of a rule reads. A kind that is not listed is shown by its own name and settings.
_PHRASES = {
    "noise": {
        "gaussian": "add Gaussian noise (std {std})",
        "learned": "add noise of a learned scale",
        "input_jitter": "jitter the input by ±{epsilon}",
        "gumbel": "add Gumbel noise (scale {scale})",
    },
    "score": {
        "softmax": "softmax over all experts",
        "softmax_selected": "softmax over the chosen experts",
        "sigmoid": "sigmoid of each logit",
        "sqrt_softplus": "square root of softplus of each logit",
        "identity": "the logit itself as score",
        "relu": "ReLU of each logit",
        "constant": "the same score for all experts",
    },
    "selection": {
        "top_k": "take the {top_k} best experts of each token",
        "grouped_top_k": "take the {top_k} best experts from the {groups_kept} best of {num_groups} groups",
        "sparse_mixer": "take {top_k} experts near the best, drawn in training",
        "product_key_top_k": "take the {top_k} experts of each token with the best pairs of keys",
        "top_p": "take experts until their probability reaches {p}",
        "entropy_k": "take {counts} experts, more as the entropy passes {thresholds}",
        "threshold": "take every expert above {threshold}",
        "hash": "pick {top_k} experts by a hash of the token",
        "random": "pick {top_k} experts at random",
        "expert_choice": "let each expert pick its tokens (capacity factor {capacity_factor})",
        "soft_slots": "mix all tokens into {slots_per_expert} slots of each expert",
        "dense": "use every expert",
    },
    "extra": {
        "null_experts": "{count} more to choose, which do nothing",
        "shared_weights": "the {count} shared experts weighted with them",
    },
    "capacity": {"capacity": "capacity {factor} × a fair share, overflow: {overflow} by {drop}"},
    "estimator": {
        "straight_through": "straight-through gradient (temperature {temperature})",
        "relaxed": "relaxed weights while training (temperature {temperature})",
    },
}
_ORDER = ("noise", "score", "selection", "extra", "weighting", "capacity", "estimator")


def describe_rule(rule: Mapping[str, Any], *, top_k: str | None = None) -> str:
    """A rule's JSON as one readable line; parts that are absent are left out.

    `top_k` stands in for the number of experts, where the line is about runs with several values of K.

    Example:
        >>> describe_rule({"selection": {"kind": "top_k", "top_k": 2}, "score": {"kind": "softmax"}})
        'softmax over all experts → take the 2 best experts of each token'
    """
    if top_k is not None and isinstance(rule.get("selection"), Mapping) and "top_k" in rule["selection"]:
        rule = {**rule, "selection": {**rule["selection"], "top_k": top_k}}
    names = [*_ORDER, *(name for name in rule if name not in _ORDER)]
    parts = [_describe_part(name, rule[name]) for name in names if isinstance(rule.get(name), Mapping)]
    return " → ".join(part for part in parts if part)


def _describe_part(name: str, part: Mapping[str, Any]) -> str:
    kind = str(part.get("kind", name))
    settings = {key: _plain(value) for key, value in part.items() if key != "kind"}
    if name == "weighting":
        return _describe_weighting(part)
    phrase = _PHRASES.get(name, {}).get(kind)
    try:
        if phrase is not None:
            return phrase.format_map(settings)
    except (KeyError, ValueError, IndexError):
        pass  # a setting the phrase names is missing: show what is there
    listed = ", ".join(f"{key} {value}" for key, value in settings.items() if value != "None")
    return f"{name} {kind}".replace("_", " ") + (f" ({listed})" if listed else "")


def _describe_weighting(part: Mapping[str, Any]) -> str:
    words = ["weights renormalised to sum 1"] if part.get("renormalize") else []
    if part.get("scale", 1.0) != 1.0:
        words.append(f"weights × {_plain(part['scale'])}")
    if part.get("apply_to", "output") != "output":
        words.append(f"weights applied to the {part['apply_to']}")
    return ", ".join(words)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def label(setting: Setting) -> str:
    """A configuration in a few words.

    Example:
        >>> label(Setting("image", "topk", 2, "aux", None, True))
        'topk, K = 2, aux balance'
    """
    name = f"{setting.router} with a frozen random gate" if setting.control == "frozen" else setting.router
    if setting.control == "dense":
        name = "dense model of the same active size"
    size = "" if setting.top_k is None else f", K = {setting.top_k}"
    balance = "" if setting.balance == "none" or setting.control == "dense" else f", {setting.balance} balance"
    return f"{name}{size}{balance}"


def run_label(run: Run) -> str:
    """A run in a few words: its configuration and seed."""
    return f"{label(run)}, seed {run.seed}"


def metric_name(metric: str) -> str:
    """A metric as it is written in a sentence."""
    return metric.replace("_", " ")


def metric_value(metric: str, value: float, ci95: float | None = None) -> str:
    """A metric with its unit and interval.

    Example:
        >>> metric_value("accuracy", 0.9712, 0.004)
        '97.12 % ± 0.40'
        >>> metric_value("bits_per_byte", 2.1524)
        '2.152'
    """
    if metric == "accuracy":
        return f"{value:.2%}".replace("%", " %") + ("" if ci95 is None else f" ± {100 * ci95:.2f}")
    return f"{value:.3f}" + ("" if ci95 is None else f" ± {ci95:.3f}")


def compact(value: float) -> str:
    """A count to three figures, thousands and millions by their letters.

    Example:
        >>> [compact(value) for value in (7, 950, 12345, 1.87e6)]
        ['7', '950', '12.3 k', '1.87 M']
    """
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            digits = 2 if value < 10 * size else 1 if value < 100 * size else 0
            return f"{value / size:.{digits}f}{letter}"
    return f"{value:.0f}"


def describe_software(software: Mapping[str, Any]) -> str:
    """The versions and the machine on one line."""
    named = {"moegate": "moegate {}", "torch": "PyTorch {}", "transformers": "transformers {}", "python": "Python {}"}
    named |= {"platform": "{}", "processor": "{}", "threads": "{} threads"}
    words = " · ".join(words.format(software[key]) for key, words in named.items() if software.get(key))
    return words.removesuffix("s") if software.get("threads") == 1 else words
