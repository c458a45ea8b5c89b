"""What a model's routing comes to on Ascend: the calls it needs, who accepts them, and what to watch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moegate.ascend.complaints import Subject, Watch, watch
from moegate.ascend.gate_calls import GateCall, gate_call, has_bias_by_custom, moving_calls
from moegate.ascend.generations import Acceptance, accepted_by
from moegate.config import ALIASES, rule_from_config
from moegate.model_types import PARTS
from moegate.parts import check_integer
from moegate.rule import RoutingRule

__all__ = ["Gate", "Report", "check_config", "read_config"]

MAX_BYTES = 16 * 2**20
"""No configuration is longer than this."""
# A list of the divisors of a greater number would take long to make.
_MOST_EXPERTS = 2**20
_LONGEST = 200
_DECIDING = frozenset(alias for aliases in ALIASES.values() for alias in aliases)


@dataclass(frozen=True)
class Gate:
    """One gate of a model: which layers have it, the call, and what each generation says to it."""

    layers: str
    call: GateCall
    acceptances: tuple[Acceptance, ...]


@dataclass(frozen=True)
class Report:
    """What ``check_config`` found.

    Attributes:
        rule: the routing rule of the configuration.
        num_experts: ``E``, experts without weights included.
        gates: the gates, none when no operator computes them.
        moving: the calls that take tokens to their experts and back: operator and Python.
        watches: what to watch.
    """

    rule: RoutingRule
    num_experts: int
    gates: tuple[Gate, ...]
    moving: tuple[tuple[str, str], ...]
    watches: tuple[Watch, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        gates = [
            {
                "layers": gate.layers,
                "operator": gate.call.operator,
                "python": gate.call.written(),
                "attributes": asdict(gate.call),
                "accepted_by": [{**asdict(one), "accepted": one.accepted} for one in gate.acceptances],
            }
            for gate in self.gates
        ]
        return {
            "rule": self.rule.to_dict(),
            "num_experts": self.num_experts,
            "gates": gates,
            "moving": [{"operator": operator, "python": python} for operator, python in self.moving],
            "watch": [asdict(one) for one in self.watches],
        }


def check_config(config: Mapping[str, Any]) -> Report:
    """What the router of a Hugging Face configuration comes to on Ascend.

    Args:
        config: the names of a ``config.json``; of a model with several parts, the part that has experts is taken.

    Raises:
        TypeError, ValueError: when the configuration names no router, or one that is not known; see
            ``moegate.config``.

    Example:
        >>> report = check_config({"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True})
        >>> report.gates[0].call.operator, report.gates[0].call.renorm
        ('npu_moe_gating_top_k', 1)
        >>> [one.accepted for one in report.gates[0].acceptances]
        [False, False, True, True, False]
    """
    part = _part_with_experts(config)
    _check_lengths(part)
    num_experts = _num_experts(part)
    rule = rule_from_config(part)
    rule.check(num_experts)
    biased = _has_bias(part, rule)
    without_weights = _experts_without_weights(part)
    scored = num_experts + without_weights
    calls = {"all": gate_call(rule, scored, biased=biased)}
    if _has_hash_layers(part):
        hashed = gate_call(rule, scored, biased=False, hashed=True)
        calls = {"layers with hash routing": hashed, "all other layers": calls["all"]}
    gates = tuple(Gate(layers, call, accepted_by(call)) for layers, call in calls.items() if call is not None)
    dtype = part.get("dtype", part.get("torch_dtype", config.get("dtype", config.get("torch_dtype"))))
    dtype = dtype.removeprefix("torch.") if isinstance(dtype, str) else None
    watches = watch(Subject(rule, gates[-1].call, dtype, without_weights)) if gates else ()
    top_k = getattr(rule.selection, "top_k", 1)
    moving = moving_calls(rule, num_experts, top_k, without_weights) if gates else ()
    return Report(rule, scored, gates, moving, watches)


def read_config(path: Path) -> dict[str, Any]:
    """The names in a ``config.json``, or in the one in a folder.

    Raises:
        FileNotFoundError, ValueError: when there is none, or it is no JSON object.
    """
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"No configuration file at {path}: pass a model's config.json, or its folder.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes: that is no model configuration.")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path} is not JSON: {why}. Pass a model's config.json.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object of names, got a {type(values).__name__}.")
    return values


def _part_with_experts(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration itself, or the first of its parts that says how many experts a token goes to."""
    telling = set(ALIASES["num_experts_per_tok"]) - {"top_k"}  # which text generation has too
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if telling & {name for name, value in part.items() if value is not None}:
            return part
    return config


def _check_lengths(part: Mapping[str, Any]) -> None:
    """What is named in an error must not fill the screen."""
    for name, value in part.items():
        text = max(str(name), value if name in _DECIDING and isinstance(value, str) else "", key=len)
        if len(text) > _LONGEST:
            raise ValueError(f"The configuration has a name of {len(text)} characters, {text[:20]!r}...: that is none.")


def _num_experts(part: Mapping[str, Any]) -> int:
    within = part.get(PARTS.get(str(part.get("model_type")), ""))
    values = {**part, **within} if isinstance(within, Mapping) else part
    for name in ALIASES["num_experts"]:
        number = values.get(name)
        if isinstance(number, int) and not isinstance(number, bool):
            if number > _MOST_EXPERTS:
                raise ValueError(f"{name}={number:.3g} is no number of experts: expected at most {_MOST_EXPERTS}.")
            return number
    raise ValueError(
        "The configuration does not say how many experts there are: expected one of "
        f"{', '.join(ALIASES['num_experts'])}."
    )


def _experts_without_weights(part: Mapping[str, Any]) -> int:
    """How many experts give back the token itself; their ids follow those of the others."""
    number = part.get("zero_expert_num")
    if number is None:
        return 0
    check_integer("zero_expert_num", number, least=0)
    if number > _MOST_EXPERTS:
        raise ValueError(f"zero_expert_num={number:.3g} is no number of experts: expected at most {_MOST_EXPERTS}.")
    return int(number)


def _has_bias(part: Mapping[str, Any], rule: RoutingRule) -> bool:
    """Whether the router has a correction bias, by what the configuration says or by custom."""
    for name in ("use_routing_bias", "use_expert_bias", "moe_router_enable_expert_bias"):
        if isinstance(part.get(name), bool):
            return bool(part[name])
    return part.get("topk_method") == "noaux_tc" or (
        has_bias_by_custom(rule.score, part.get("model_type")) and rule.weighting.apply_to == "output"
    )


def _has_hash_layers(part: Mapping[str, Any]) -> bool:
    layers, count = part.get("mlp_layer_types"), part.get("num_hash_layers")
    return (isinstance(layers, list) and "hash_moe" in layers) or (isinstance(count, int) and count > 0)
