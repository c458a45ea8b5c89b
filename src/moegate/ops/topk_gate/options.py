"""How a gate's rule travels to the operators: a few numbers, and one integer whose bits are its choices."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch

SCORES = ("softmax", "softmax_selected", "sigmoid", "sqrt_softplus", "identity", "relu")
GROUP_SCORES = ("max", "top2_sum")
RANK_BY = ("logits", "scores")
INDEX_DTYPES = (torch.int64, torch.int32)

_FLAGS = ("groups_by_top2_sum", "ranks_scores", "renormalize", "narrow_index", "with_counts", "with_logsumexp")
# Below this, eps is lost in a sum that is at least 1/E: it changes no bit of a weight in float32.
_NEGLIGIBLE = 2.0**-40


class Options(NamedTuple):
    """The last arguments of the operators, in their order."""

    top_k: int
    num_groups: int
    groups_kept: int
    eps: float
    scale: float
    mode: int


class Mode(NamedTuple):
    """The bits of ``Options.mode``. ``weight_score`` is what the weights are made of: mostly ``score``."""

    score: str
    weight_score: str
    groups_by_top2_sum: bool
    ranks_scores: bool
    renormalize: bool
    narrow_index: bool
    with_counts: bool
    with_logsumexp: bool

    def bits(self) -> int:
        """The integer that ``mode_of`` reads."""
        flags = sum(1 << bit for bit, name in enumerate(_FLAGS) if getattr(self, name))
        return SCORES.index(self.score) | SCORES.index(self.weight_score) << 4 | flags << 8


def keeps_logsumexp(bits: int) -> bool:
    """``mode_of(bits).with_logsumexp``, for those who look at nothing else.

    Example:
        >>> keeps_logsumexp(Mode("relu", "relu", False, False, False, False, False, True).bits())
        True
    """
    return bool(bits >> 8 >> _FLAGS.index("with_logsumexp") & 1)


def mode_of(bits: int) -> Mode:
    """The choices in the bits of a mode.

    Example:
        >>> mode = Mode("sigmoid", "sigmoid", False, False, True, False, False, False)
        >>> mode_of(mode.bits()) == mode
        True
    """
    score, weight_score = bits & 15, bits >> 4 & 15
    if not (0 <= bits < 1 << (8 + len(_FLAGS)) and max(score, weight_score) < len(SCORES)):
        raise ValueError(f"mode={bits} does not describe a gate: build it with moegate.ops.topk_gate.")
    return Mode(SCORES[score], SCORES[weight_score], *(bool(bits >> 8 >> bit & 1) for bit in range(len(_FLAGS))))


@lru_cache(maxsize=1024, typed=True)
def options_for(  # noqa: PLR0913, PLR0917 - the whole rule of a gate, as the key of a cache
    num_experts: int,
    has_bias: bool,
    top_k: int,
    score: str,
    num_groups: int,
    groups_kept: int,
    group_score: str,
    renormalize: bool,
    eps: float,
    scale: float,
    rank_by: str,
    index_dtype: torch.dtype,
    with_counts: bool,
    with_logsumexp: bool,
    differentiable: bool,
) -> Options:
    """The options of a gate over ``num_experts`` experts; a gradient may need the logsumexp even if nobody reads it.

    Raises:
        TypeError, ValueError: when a setting is unknown or does not fit the number of experts.
    """
    _check_choice("score", score, SCORES)
    _check_choice("group_score", group_score, GROUP_SCORES)
    _check_choice("rank_by", rank_by, RANK_BY)
    _check_choice("index_dtype", index_dtype, INDEX_DTYPES)
    _check_numbers(eps, scale)
    check_sizes(num_experts, top_k, num_groups, groups_kept, group_score == "top2_sum")
    weight_score = score
    # Scores are NaN beside a logit of +inf, and choose anything then; logits choose the +inf, which spoils both alike.
    by_logits = not has_bias and rank_by == "logits" and (group_score == "max" or groups_kept == num_groups)
    if score == "softmax" and renormalize and by_logits and eps * num_experts < _NEGLIGIBLE:
        # The total over all experts cancels: a softmax over the chosen is the same, without a look at the others.
        weight_score, renormalize = "softmax_selected", False
    mode = Mode(
        score=score,
        weight_score=weight_score,
        groups_by_top2_sum=group_score == "top2_sum",
        ranks_scores=rank_by == "scores",
        renormalize=bool(renormalize),
        narrow_index=index_dtype == torch.int32,
        with_counts=bool(with_counts),
        with_logsumexp=bool(with_logsumexp) or (differentiable and weight_score == "softmax"),
    )
    return Options(top_k, num_groups, groups_kept, float(eps), float(scale), mode.bits())


def check_sizes(num_experts: int, top_k: int, num_groups: int, groups_kept: int, by_top2_sum: bool) -> None:
    """Raises a ``ValueError`` unless ``top_k`` experts can be chosen from so many groups."""
    for name, value, most in (
        ("top_k", top_k, num_experts),
        ("num_groups", num_groups, num_experts),
        ("groups_kept", groups_kept, num_groups),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}.")
        if not 1 <= value <= most:
            raise ValueError(f"{name}={value} is out of range: choose from 1 to {most}.")
    if num_experts % num_groups:
        raise ValueError(f"{num_experts} experts do not divide into num_groups={num_groups} equal groups.")
    group_size = num_experts // num_groups
    if by_top2_sum and group_size < 2:
        raise ValueError(f"group_score='top2_sum' needs groups of at least 2 experts; these have {group_size}.")
    if top_k > groups_kept * group_size:
        raise ValueError(
            f"top_k={top_k} exceeds the {groups_kept * group_size} experts of {groups_kept} groups of {group_size}."
        )


def _check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(str(one) for one in known)}; got {value!r}.")


def _check_numbers(eps: float, scale: float) -> None:
    for name, value in (("eps", eps), ("scale", scale)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {value!r}.")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative or NaN, got {eps}.")
    if not -math.inf <= scale <= math.inf:  # unlike math.isnan, this can be compiled for any number
        raise ValueError("scale must be a number, got NaN.")
