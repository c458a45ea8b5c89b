"""``RoutingRule``: the value that says how a router routes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from moegate.capacity import Capacity
from moegate.estimators import ESTIMATORS, Estimator, Relaxed
from moegate.extra import EXTRAS, Extra
from moegate.noise import NOISES, LearnedNoise, Noise
from moegate.parts import Part, check_choice, did_you_mean, family_of, part_from_dict
from moegate.scoring import SCORES, Score, Softmax, SoftmaxSelected
from moegate.selection import SELECTIONS, Dense, ExpertChoice, ProductKeyTopK, Selection, SoftSlots, SparseMixer, TopK
from moegate.weighting import Weighting


@dataclass(frozen=True, repr=False)
class RoutingRule:
    """How a router turns logits into assignments: a frozen, comparable value made of parts.

    The parts act in this order: noise (training only) → score → selection → weighting → estimator (training
    only) → capacity.

    Args:
        selection: which experts; see ``moegate.selection``.
        score: how logits become scores; see ``moegate.scoring``.
        weighting: how the scores of the chosen experts become weights.
        noise: what is drawn in training; see ``moegate.noise``.
        estimator: a gradient through the selection; see ``moegate.estimators``.
        capacity: a limit on each expert's assignments; None drops nothing.
        rank_by: ``"logits"``: without a bias, a monotone score is ranked by its logits, so that saturation does not
            blur the order. ``"scores"``: the scores are ranked even then, as the Ascend operators do.
            ``"biased_logits"``: the bias is added to the logits, whatever the score.
        extra: what the logits behind those of the experts are for; see ``moegate.extra``.

    Raises:
        TypeError, ValueError: when a part is of the wrong family, or parts do not go together.

    Example:
        >>> import moegate
        >>> rule = moegate.RoutingRule(selection=moegate.selection.TopK(2), score=moegate.scoring.Sigmoid())
        >>> rule
        RoutingRule(selection=TopK(top_k=2), score=Sigmoid())
        >>> moegate.RoutingRule.from_json(rule.to_json()) == rule
        True
    """

    # The default parts are frozen values, so one instance may serve every rule.
    selection: Selection = TopK()  # noqa: RUF009
    score: Score = Softmax()  # noqa: RUF009
    weighting: Weighting = Weighting()  # noqa: RUF009
    noise: Noise | None = None
    estimator: Estimator | None = None
    capacity: Capacity | None = None
    rank_by: str = "logits"
    extra: Extra | None = None

    def __post_init__(self) -> None:
        for name, (family, optional) in _ROLES.items():
            part = getattr(self, name)
            if not (isinstance(part, family) or (optional and part is None)):
                raise TypeError(f"{name} must be a {family.__name__}{' or None' if optional else ''}, got {part!r}.")
        check_choice("rank_by", self.rank_by, ("logits", "scores", "biased_logits"))
        if self.capacity is not None and isinstance(self.selection, ExpertChoice | Dense | SoftSlots):
            raise ValueError(
                f"capacity has no meaning for {self.selection!r}, which loads every expert alike: leave it None."
            )
        if isinstance(self.selection, SparseMixer) and self.capacity is not None and self.capacity.overflow != "drop":
            raise ValueError(
                "A SparseMixer weighs the experts that it drew, so none can be rerouted: use Capacity(overflow='drop')."
            )
        if isinstance(self.selection, SoftSlots):
            self._check_soft()
        if isinstance(self.selection, ProductKeyTopK) and isinstance(self.noise, LearnedNoise):
            raise ValueError("A learned noise has one scale a logit, and product keys one logit for many experts.")
        if isinstance(self.estimator, Relaxed):
            self._check_relaxed()
        if self.extra is not None:
            self._check_extra(self.extra)

    def __hash__(self) -> int:
        # Kept, because each call of route() looks its rule up in two tables.
        kept: int | None = self.__dict__.get("_hash")
        if kept is None:
            kept = hash(tuple(getattr(self, field.name) for field in fields(self)))
            object.__setattr__(self, "_hash", kept)
        return kept

    def __getstate__(self) -> dict[str, Any]:
        # The hash of a text differs from process to process.
        return {name: value for name, value in vars(self).items() if name != "_hash"}

    def _check_soft(self) -> None:
        """A soft routing has its own softmaxes; a part that would be ignored is refused."""
        for name in ("score", "weighting", "estimator"):
            if getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(f"{self.selection!r} mixes by softmaxes of its own: leave {name} at its default.")

    def _check_extra(self, extra: Extra) -> None:
        if isinstance(self.selection, SoftSlots | Dense | ExpertChoice):
            raise ValueError(f"{self.selection!r} has no use for {extra!r}: every expert takes its part anyway.")
        if self.capacity is not None and self.capacity.overflow != "drop":
            raise ValueError(f"{extra!r} does not go with a capacity that reroutes: use Capacity(overflow='drop').")
        if extra.num_shared and self.estimator is not None:
            raise ValueError(f"{extra!r} weighs by the score alone: leave estimator None.")
        if extra.num_shared and isinstance(self.selection, SparseMixer):
            raise ValueError(f"{self.selection!r} has weights of its own, which {extra!r} can't join.")

    def _check_relaxed(self) -> None:
        if not isinstance(self.selection, TopK):
            raise ValueError(
                f"The relaxed estimator relaxes TopK, not {self.selection!r}: use TopK or another estimator."
            )
        if self.capacity is not None:
            raise ValueError(
                "The relaxed estimator sends every token to every expert in training: leave capacity None."
            )
        if isinstance(self.score, SoftmaxSelected):
            raise ValueError(
                "The relaxed estimator has no chosen experts for a softmax to go over: use Softmax() with "
                "Weighting(renormalize=True), whose hard weights are the same."
            )

    def __repr__(self) -> str:
        default = _DEFAULTS
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if field.name == "selection" or getattr(self, field.name) != default[field.name]
        ]
        return f"RoutingRule({', '.join(shown)})"

    def replace(self, **parts: Any) -> "RoutingRule":
        """The same rule with some parts replaced.

        Example:
            >>> import moegate
            >>> moegate.recipes.mixtral().replace(selection=moegate.selection.TopK(4)).selection.top_k
            4
        """
        return replace(self, **parts)

    def at_temperature(self, temperature: float) -> "RoutingRule":
        """The same rule with its estimator at another temperature; without an estimator, the rule itself."""
        return self if self.estimator is None else replace(self, estimator=self.estimator.at(temperature))

    def check(self, num_experts: int) -> None:
        """Raises a ``ValueError`` when the rule can't route among ``num_experts`` experts.

        Example:
            >>> import moegate
            >>> moegate.recipes.mixtral(top_k=9).check(num_experts=8)
            Traceback (most recent call last):
            ...
            ValueError: top_k=9 exceeds the 8 experts: choose top_k from 1 to 8, or add experts.
        """
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {num_experts}.")
        self.selection.check(self.num_classes(num_experts))

    def num_classes(self, num_experts: int) -> int:
        """Among how many classes the rule selects: the experts, and null experts if it has any. So long is a bias.

        Example:
            >>> import moegate
            >>> moegate.recipes.zaya().num_classes(16), moegate.recipes.inkling().num_classes(16)
            (17, 16)
        """
        return num_experts if self.extra is None else num_experts + self.extra.num_null

    def num_logits(self, num_experts: int) -> int:
        """How many logits a gate has to give for ``num_experts`` experts.

        Example:
            >>> import moegate
            >>> moegate.recipes.zaya().num_logits(16), moegate.recipes.soft_moe(slots_per_expert=2).num_logits(16)
            (17, 32)
        """
        num_shared = 0 if self.extra is None else self.extra.num_shared
        return self.selection.num_logits(self.num_classes(num_experts)) + num_shared

    def num_experts(self, num_logits: int) -> int:
        """Among how many experts the rule routes by ``num_logits`` logits.

        Example:
            >>> import moegate
            >>> moegate.recipes.zaya().num_experts(17)
            16
        """
        num_null, num_shared = (0, 0) if self.extra is None else (self.extra.num_null, self.extra.num_shared)
        if num_logits <= num_null + num_shared:
            raise ValueError(
                f"{num_logits} logits are too few for {self.extra!r}, which leaves none for the experts: give "
                f"{num_null + num_shared} more than there are experts."
            )
        return self.selection.num_experts(num_logits - num_shared) - num_null

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON values, one object a part."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to_dict() if isinstance(value, Part) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RoutingRule":
        """The rule that ``to_dict`` described; parts that are left out take their defaults."""
        if not isinstance(data, Mapping):
            raise TypeError(f"A rule is an object of parts, got {type(data).__name__}.")
        parts: dict[str, Any] = {}
        for name, value in data.items():
            if name not in _DEFAULTS:
                raise ValueError(f"A rule has no part {name!r}.{did_you_mean(str(name), _DEFAULTS)}")
            family = _TABLES.get(name)
            parts[name] = value if family is None or value is None else part_from_dict(value, family, name)
        return cls(**parts)

    def to_json(self) -> str:
        """The rule as a JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "RoutingRule":
        """The rule that ``to_json`` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_config(cls, config: Any) -> "RoutingRule":
        """The rule of a model configuration: a dict, or a Hugging Face ``PretrainedConfig``.

        Understands the Hugging Face names and their aliases, such as ``num_experts`` / ``n_routed_experts`` /
        ``num_local_experts``, ``num_experts_per_tok``, ``scoring_func``, ``n_group``, ``topk_group``,
        ``norm_topk_prob``, ``routed_scaling_factor``; see ``moegate.config``.

        Example:
            >>> import moegate
            >>> moegate.RoutingRule.from_config({"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": True})
            RoutingRule(selection=TopK(top_k=8), weighting=Weighting(renormalize=True))
        """
        from moegate.config import rule_from_config

        return rule_from_config(config)


_ROLES: dict[str, tuple[type[Part], bool]] = {
    "selection": (Selection, False),
    "score": (Score, False),
    "weighting": (Weighting, False),
    "noise": (Noise, True),
    "estimator": (Estimator, True),
    "capacity": (Capacity, True),
    "extra": (Extra, True),
}
_TABLES: dict[str, Mapping[str, type[Any]]] = {
    "selection": SELECTIONS,
    "score": SCORES,
    "weighting": family_of(Weighting),
    "noise": NOISES,
    "estimator": ESTIMATORS,
    "capacity": family_of(Capacity),
    "extra": EXTRAS,
}
_DEFAULTS = {field.name: field.default for field in fields(RoutingRule)}
