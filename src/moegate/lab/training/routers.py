"""The routers that the lab knows by name, and which settings go together."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moegate import recipes
from moegate.lab.training.balancing import BalanceStrategy, balance_strategy
from moegate.parts import did_you_mean
from moegate.rule import RoutingRule
from moegate.selection import ExpertChoice, SoftSlots

if TYPE_CHECKING:
    from moegate.lab.training.config import TrainConfig


@dataclass(frozen=True)
class RouterSpec:
    """A router of the lab.

    Attributes:
        rule: a configuration → the routing rule.
        uses_top_k: whether K is a setting of it; others run once in a sweep.
        balanced: whether a balance strategy can act on it: its selection is learned and its load not fixed.
        fixed_k: whether every token gets K experts, K < E, in training and in evaluation.
        learned_noise: whether it needs the gate with a learned noise scale.
    """

    rule: Callable[["TrainConfig"], RoutingRule]
    uses_top_k: bool = True
    balanced: bool = True
    fixed_k: bool = True
    learned_noise: bool = False


def _deepseek_v3(config: "TrainConfig") -> RoutingRule:
    groups, kept = _groups(config)
    return recipes.deepseek_v3(config.top_k, num_groups=groups, groups_kept=kept)


def _deepseek_v2(config: "TrainConfig") -> RoutingRule:
    groups, kept = _groups(config)
    # The published scale of 16 makes up for 160 experts: with E experts, 16 · E / 160.
    scale = 16.0 * config.num_experts / 160
    return recipes.deepseek_v2(config.top_k, num_groups=groups, groups_kept=kept, scale=scale)


def _groups(config: "TrainConfig") -> tuple[int, int]:
    """Groups of two experts (as small as a top-2 sum allows), half of them kept, or as many as K needs."""
    groups = max(1, config.num_experts // 2)
    size = config.num_experts // groups
    return groups, min(groups, max(math.ceil(config.top_k / size), math.ceil(groups / 2)))


def _soft(config: "TrainConfig") -> RoutingRule:
    per_sequence = config.sequence_length if config.task == "text" else config.batch_size // config.accumulate
    return recipes.soft_moe(slots_per_expert=max(1, config.top_k * per_sequence // config.num_experts))


ROUTERS: dict[str, RouterSpec] = {
    # Not renormalised: with K = 1 a renormalised weight is always 1, which leaves the gate without a gradient, and
    # rows of different K would differ in more than K.
    "topk": RouterSpec(lambda c: recipes.topk(c.top_k, renormalize=False)),
    "noisy_topk": RouterSpec(lambda c: recipes.noisy_topk(c.top_k), learned_noise=True),
    # A capacity factor of K makes the experts do as much work as K experts a token.
    "expert_choice": RouterSpec(
        lambda c: recipes.expert_choice(capacity_factor=float(c.top_k), scope="sequence"),
        balanced=False,
        fixed_k=False,
    ),
    # As many slots as K experts a token would take: the same work.
    "soft": RouterSpec(_soft, balanced=False, fixed_k=False),
    "all_experts": RouterSpec(lambda c: recipes.dense(), uses_top_k=False, balanced=False, fixed_k=False),
    "hash": RouterSpec(lambda c: recipes.hash_routing(c.top_k), balanced=False),
    "random": RouterSpec(lambda c: recipes.random_routing(c.top_k), balanced=False),
    "top_p": RouterSpec(lambda c: recipes.top_p(), uses_top_k=False, fixed_k=False),
    "entropy_k": RouterSpec(lambda c: recipes.entropy_k(max_k=min(4, c.num_experts)), uses_top_k=False, fixed_k=False),
    "relu": RouterSpec(lambda c: recipes.relu(), uses_top_k=False, fixed_k=False),
    # Relaxed: every expert runs in training, K of them only in evaluation.
    "gumbel": RouterSpec(lambda c: recipes.gumbel_topk(c.top_k, relaxed=True), fixed_k=False),
    # Of the lab's batches, 64 places would drop nothing: the even share, in evaluation too.
    "nllb_moe": RouterSpec(
        lambda c: recipes.nllb_moe(places=None, num_experts=c.num_experts, eval_fraction=2 / c.num_experts),
        uses_top_k=False,
    ),
    "deepseek_v2": RouterSpec(_deepseek_v2),
    "deepseek_v3": RouterSpec(_deepseek_v3),
}
"""Name → router. All other recipes are routers under their own names, with their published settings."""


def router_names() -> list[str]:
    """Return the names of all routers of the lab.

    Example:
        >>> {"topk", "switch", "expert_choice", "hash"} <= set(router_names())
        True
    """
    return [*ROUTERS, *(name for name in recipes.names() if name not in {*ROUTERS, *_RENAMED})]


_RENAMED = {
    "soft_moe": "soft",
    "dense": "all_experts",
    "hash_routing": "hash",
    "random_routing": "random",
}
"""Recipes that the lab has under another name, with settings that make them comparable."""


def router_spec(name: str) -> RouterSpec:
    """Return the router of a name.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> router_spec("switch").uses_top_k
        False
        >>> router_spec("swich")
        Traceback (most recent call last):
            ...
        ValueError: Unknown router 'swich'. Did you mean 'switch'?
    """
    name = _RENAMED.get(name, name)
    if name in ROUTERS:
        return ROUTERS[name]
    if name not in recipes.names():
        raise ValueError(f"Unknown router '{name}'.{did_you_mean(name, router_names())}")
    recipe = recipes.get(name)
    if "top_k" in inspect.signature(recipe).parameters:
        extra = recipe().extra
        # A null class that is chosen leaves a slot empty.
        return RouterSpec(lambda config: recipe(top_k=config.top_k), fixed_k=extra is None or extra.num_null == 0)
    return RouterSpec(lambda config: recipe(), uses_top_k=False)


def make_rule(config: "TrainConfig") -> RoutingRule:
    """Return the routing rule of a configuration, its capacity factor replaced if one is set.

    Raises:
        ValueError: an unknown router, or a capacity factor for a router without capacity.

    Example:
        >>> from moegate.lab.training.config import TrainConfig
        >>> make_rule(TrainConfig.create(task="image", router="switch", capacity_factor=2.0)).capacity.factor
        2.0
    """
    rule = router_spec(config.router).rule(config)
    if config.capacity_factor is None:
        return rule
    if rule.capacity is None:
        raise ValueError(
            f"capacity_factor={config.capacity_factor} is set, but the router '{config.router}' has no capacity: "
            "leave it out, or take a router with one, such as switch or gshard."
        )
    return rule.replace(capacity=type(rule.capacity)(**{**_fields(rule.capacity), "factor": config.capacity_factor}))


def _fields(part: Any) -> dict[str, Any]:
    return {name: value for name, value in part.to_dict().items() if name != "kind"}


def num_logits(config: "TrainConfig", rule: RoutingRule) -> int:
    """Return how many logits a gate gives: one an expert, one a slot of soft routing, and those of extra classes.

    Example:
        >>> from moegate.lab.training.config import TrainConfig
        >>> config = TrainConfig.create(task="image")
        >>> num_logits(config, make_rule(config))
        8
    """
    return rule.num_logits(config.num_experts)


def largest_k(config: "TrainConfig") -> int:
    """Return the most experts that a token visits: K where it is fixed, all where nothing limits it.

    Example:
        >>> from moegate.lab.training.config import TrainConfig
        >>> largest_k(TrainConfig.create(task="image", router="entropy_k")), largest_k(
        ...     TrainConfig.create(task="image", router="top_p"))
        (4, 8)
    """
    if config.control == "dense" or router_spec(config.router).uses_top_k:
        return config.top_k
    selection = make_rule(config).selection
    limits = (getattr(selection, "top_k", None), getattr(selection, "max_k", None), *getattr(selection, "counts", ()))
    return max((limit for limit in limits if limit is not None), default=config.num_experts)


def looks_ahead(rule: RoutingRule) -> bool:
    """Return whether a token's experts depend on tokens after it, or on other sequences after its own.

    So it is for expert choice and soft routing, and for capacity unless earlier tokens are served first: by position
    with K > 1 first choices of later tokens come before second choices of earlier ones.

    Example:
        >>> looks_ahead(recipes.mixtral()), looks_ahead(recipes.switch()), looks_ahead(recipes.expert_choice())
        (False, False, True)
        >>> looks_ahead(recipes.gshard())
        True
    """
    if isinstance(rule.selection, ExpertChoice | SoftSlots):
        return True
    if rule.capacity is None:
        return False
    return rule.capacity.drop != "position" or getattr(rule.selection, "top_k", None) != 1


def default_balance(router: str, control: str) -> str:
    """Return the balance of a run that names none: "aux" where a strategy can act, else "none".

    Example:
        >>> default_balance("topk", "none"), default_balance("hash", "none"), default_balance("topk", "frozen")
        ('aux', 'none', 'none')
    """
    return "aux" if control == "none" and router_spec(router).balanced else "none"


def combination_problem(settings: Mapping[str, Any], task: str, num_experts: int) -> str | None:
    """Return a sentence that says why router, K, balance and control don't go together, or None.

    Raises:
        ValueError: an unknown router or balance.

    Example:
        >>> settings = {"router": "hash", "balance": "aux", "control": "none", "top_k": 2}
        >>> combination_problem(settings, "image", 8)
        "balance 'aux' can't act on the router 'hash': its load isn't learned; use 'none'."
    """
    spec, top_k = router_spec(settings["router"]), settings.get("top_k")
    if spec.uses_top_k and top_k is not None and top_k > num_experts:
        return f"top_k={top_k} exceeds the {num_experts} experts; choose at most {num_experts}."
    strategy = balance_strategy(settings["balance"])
    problem = None if settings["balance"] == "none" else _balance_problem(spec, strategy, settings, task)
    if problem is None and strategy.fixed_k and top_k == num_experts:
        problem = f"has nothing to balance where K is all {num_experts} experts; use 'none'."
    return problem and f"balance '{settings['balance']}' {problem}"


def _balance_problem(spec: RouterSpec, strategy: BalanceStrategy, settings: Mapping[str, Any], task: str) -> str | None:
    if settings["control"] != "none":
        return f"has nothing to act on in the control '{settings['control']}'; use 'none'."
    if not spec.balanced:
        return f"can't act on the router '{settings['router']}': its load isn't learned; use 'none'."
    if strategy.needs == "sequences" and task != "text":
        return "balances within sequences, but images have none; use 'aux'."
    if strategy.needs == "learned_noise" and not spec.learned_noise:
        return "needs a learned noise; use the router 'noisy_topk', or the balance 'importance'."
    if strategy.fixed_k and not spec.fixed_k:
        return f"needs the same K for every token, also in training, unlike '{settings['router']}'; use 'sign_bias'."
    return None
