"""What the logits behind those of the experts are for: classes that are chosen and empty, or weights for all tokens."""

from dataclasses import dataclass
from typing import ClassVar

from moegate.parts import Part, check_positive_integer, family_of


@dataclass(frozen=True, repr=False)
class Extra(Part):
    """The last ``count`` logits of a token belong to no routed expert."""

    count: int = 1

    def __post_init__(self) -> None:
        check_positive_integer("count", self.count)

    @property
    def num_null(self) -> int:
        """How many of the logits take part in the selection and are no experts."""
        return 0

    @property
    def num_shared(self) -> int:
        """How many of the logits belong to experts that every token goes to."""
        return 0


@dataclass(frozen=True, repr=False)
class NullExperts(Extra):
    """Classes that compete with the experts and do nothing: a token that chooses one has an empty slot.

    They are scored, biased and chosen among all ``num_experts + count`` classes, and take their share of what the
    weights are divided by. In the result their slots are ``-1``, as are those of masked tokens, with weight 0; loads,
    losses and metrics are about the real experts. An expert that gives its input back, as the zero-computation experts
    of LongCat-Flash do, is not null: it returns something, so it is an expert like the others.

    Args:
        count: how many of the last logits are such classes.

    Shapes: logits ``[..., num_experts + count]``; a bias has one value per class.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.RoutingRule(moegate.selection.TopK(2), extra=NullExperts(1))
        >>> routing = moegate.route(torch.tensor([[1.0, 0.0, 3.0]]), rule)
        >>> routing.num_experts, routing.expert_index.tolist(), routing.load.tolist()
        (2, [[-1, 0]], [1, 0])

    Source: MoE++ (arXiv 2410.07348), whose zero experts these are; ZAYA's skip expert.
    """

    kind: ClassVar[str] = "null_experts"

    @property
    def num_null(self) -> int:
        return self.count


@dataclass(frozen=True, repr=False)
class SharedWeights(Extra):
    """Logits of the shared experts, which every token goes to: they are weighed together with the chosen ones.

    Nothing selects them. Their raw weights join those of the chosen experts, so that a renormalisation goes over both,
    and come out as ``routing.shared_weights``.

    Args:
        count: how many of the last logits are those of shared experts.

    Shapes: logits ``[..., num_experts + count]``; a bias has one value per routed expert; ``expert_scale`` has one per
    routed expert, or one per logit; ``routing.shared_weights`` is ``[T, count]``.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.zeros(1, 6), moegate.recipes.inkling(2, num_shared=2, scale=1.0))
        >>> routing.num_experts, routing.weights.tolist(), routing.shared_weights.tolist()
        (4, [[0.25, 0.25]], [[0.25, 0.25]])

    Source: Inkling, as in transformers.
    """

    kind: ClassVar[str] = "shared_weights"

    @property
    def num_shared(self) -> int:
        return self.count


EXTRAS = family_of(NullExperts, SharedWeights)
"""Every extra by its kind."""
