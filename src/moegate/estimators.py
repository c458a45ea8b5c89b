"""Gradients through the selection: relaxed top-k and the straight-through estimator.

A plain rule has an exact gradient for its weights and none through its indices. An estimator changes that, in
training only; evaluation is always the hard selection.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from moegate.parts import Part, check_choice, check_positive, family_of
from moegate.records import EMPTY
from moegate.scoring import gather_slots
from moegate.weighting import Weighting

_ALMOST_MINUS_INFINITY = -1e30


def relaxed_top_k(logits: Tensor, k: int, temperature: float = 1.0) -> Tensor:
    """A differentiable k-hot vector: ``k`` softmaxes in a row, each with the mass of those before taken out.

    With ``p_i = softmax(z_i / τ)`` and ``z_{i+1} = z_i + log(1 - p_i)`` the result is ``Σ p_i``: non-negative
    entries that sum to ``k``, and the hard k-hot vector as ``τ`` goes to 0. With Gumbel noise on the logits this is
    the relaxed subset sampling of Xie & Ermon 2019 (arXiv 1901.10517); for ``k = 1`` it is the Gumbel-softmax.

    Args:
        logits: ``[..., E]``, with any noise already added.
        k: how many, from 1 to E.
        temperature: ``τ``, greater than 0.

    Returns:
        ``[..., E]``.

    Raises:
        ValueError: when ``k`` or ``temperature`` is out of range.

    Example:
        >>> import torch
        >>> relaxed_top_k(torch.tensor([4.0, 3.0, -9.0]), k=2, temperature=0.1).round(decimals=3).tolist()
        [1.0, 1.0, 0.0]
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k={k} must lie between 1 and the number of experts, {logits.shape[-1]}.")
    check_positive("temperature", temperature)
    # With fewer than k finite logits the last softmaxes would have nothing left to share out, and be NaN.
    logits = logits.clamp(min=_ALMOST_MINUS_INFINITY)
    relaxed = (logits / temperature).softmax(dim=-1)
    for _ in range(k - 1):
        logits = logits + _log_of_the_rest(logits / temperature)
        relaxed = relaxed + (logits / temperature).softmax(dim=-1)
    return relaxed


def _log_of_the_rest(scaled: Tensor) -> Tensor:
    """``log(1 - softmax(scaled))``, also where the softmax rounds to 1."""
    is_greatest = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, scaled.argmax(dim=-1, keepdim=True), True)
    rest = scaled.masked_fill(is_greatest, float("-inf")).logsumexp(dim=-1, keepdim=True)
    of_greatest = rest - scaled.logsumexp(dim=-1, keepdim=True)
    of_others = torch.log1p(-scaled.softmax(dim=-1).masked_fill(is_greatest, 0.0))
    return torch.where(is_greatest, of_greatest, of_others)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """``hard`` in the forward pass, the gradient of ``soft`` in the backward pass (arXiv 1308.3432).

    Example:
        >>> import torch
        >>> soft = torch.tensor([0.7, 0.3], requires_grad=True)
        >>> out = straight_through(torch.tensor([1.0, 0.0]), soft)
        >>> out.tolist(), torch.autograd.grad(out[0], soft)[0].tolist()
        ([1.0, 0.0], [1.0, 0.0])
    """
    difference = soft - soft.detach()
    # An infinite soft value would turn the zero into NaN and change the forward value.
    return hard.detach() + torch.where(soft.detach().isfinite(), difference, 0.0)


def annealed(step: int, *, start: float, end: float, steps: int, shape: str = "exponential") -> float:
    """The temperature at ``step`` of a schedule from ``start`` to ``end`` over ``steps`` steps, and ``end`` after it.

    Example:
        >>> [round(annealed(step, start=2.0, end=0.5, steps=2), 3) for step in range(4)]
        [2.0, 1.0, 0.5, 0.5]
    """
    check_positive("start", start)
    check_positive("end", end)
    check_choice("shape", shape, ("exponential", "linear", "cosine"))
    done = 1.0 if steps <= 0 else min(max(step / steps, 0.0), 1.0)
    if shape == "exponential":
        return float(start * (end / start) ** done)
    if shape == "cosine":
        done = (1.0 - math.cos(math.pi * done)) / 2.0
    return start + (end - start) * done


@dataclass(frozen=True, repr=False)
class Estimator(Part):
    """How the weights get a gradient through the selection; ``temperature`` is the one thing to anneal."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    def at(self, temperature: float) -> "Estimator":
        """The same estimator at another temperature."""
        return replace(self, temperature=temperature)

    def estimate(
        self,
        noisy_logits_TE: Tensor,
        scores_TE: Tensor,
        index_TK: Tensor,
        weights_TK: Tensor,
        weighting: Weighting,
    ) -> tuple[Tensor, Tensor]:
        """``(index, weights)`` to use in training, from the hard ones."""
        raise TypeError(f"{type(self).__name__} does not say how it estimates.")


@dataclass(frozen=True, repr=False)
class StraightThrough(Estimator):
    """The hard weights forward; backward the gradient of ``softmax(z / τ)`` at the chosen experts, times the scale.

    It gives a router a gradient where the hard weights have none: with one expert and renormalised weights.

    Example:
        >>> import torch, moegate
        >>> logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> routing = moegate.route(logits, moegate.recipes.straight_through(top_k=1), training=True)
        >>> routing.weights.item(), bool(torch.autograd.grad(routing.weights.sum(), logits)[0].abs().sum() > 0)
        (1.0, True)
    """

    kind: ClassVar[str] = "straight_through"

    def estimate(
        self,
        noisy_logits_TE: Tensor,
        scores_TE: Tensor,
        index_TK: Tensor,
        weights_TK: Tensor,
        weighting: Weighting,
    ) -> tuple[Tensor, Tensor]:
        soft_TE = (noisy_logits_TE / self.temperature).softmax(dim=-1) * weighting.scale
        return index_TK, straight_through(weights_TK, gather_slots(soft_TE, index_TK, fill=0.0))


@dataclass(frozen=True, repr=False)
class Relaxed(Estimator):
    """In training every expert takes part, with ``relaxed_top_k(z, k, τ) · s`` as its raw weight, before the weighting.

    The gradient is exact for what is computed, and reaches experts that the hard selection leaves out; the price
    is that of all experts. As ``τ`` goes to 0 the weights become the hard ones. Combine with ``GumbelNoise`` for the
    Gumbel-softmax top-k, and anneal the temperature.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.gumbel_topk(top_k=1, temperature=0.5, relaxed=True)
        >>> moegate.route(torch.zeros(3, 4), rule, training=True).weights.shape
        torch.Size([3, 4])
    """

    kind: ClassVar[str] = "relaxed"

    def estimate(
        self,
        noisy_logits_TE: Tensor,
        scores_TE: Tensor,
        index_TK: Tensor,
        weights_TK: Tensor,
        weighting: Weighting,
    ) -> tuple[Tensor, Tensor]:
        membership_TE = relaxed_top_k(noisy_logits_TE, index_TK.shape[-1], self.temperature)
        all_experts_TE = torch.arange(scores_TE.shape[-1], device=index_TK.device).expand(scores_TE.shape)
        # A token without any chosen expert is masked, and stays without.
        masked_T1 = (index_TK < 0).all(dim=-1, keepdim=True)
        return all_experts_TE.masked_fill(masked_T1, EMPTY), weighting.weigh(membership_TE * scores_TE)


ESTIMATORS = family_of(StraightThrough, Relaxed)
"""Every estimator by its kind."""
