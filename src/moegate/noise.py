"""Noise: how a router explores while it trains. Nothing here is drawn in evaluation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.parts import Part, check_positive, family_of


@dataclass(frozen=True, repr=False)
class Noise(Part):
    """What is drawn in training: on the hidden states, before the gate, or on the logits, after it.

    A noise overrides one of the two methods; the other leaves its input as it is.
    """

    def on_hidden(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        """The hidden states ``[..., D]`` that the gate sees."""
        return hidden

    def on_logits(self, logits_TE: Tensor, noise_scale_TE: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The logits ``[T, E]`` that are scored and selected from."""
        return logits_TE

    def standard_deviation(self, logits_TE: Tensor, noise_scale_TE: Tensor | None) -> Tensor | None:
        """``[T, E]``, for the losses that need it; None where the noise is not normal."""
        return noise_scale_TE


@dataclass(frozen=True, repr=False)
class GaussianNoise(Noise):
    """``z + ε · N(0, 1)`` with a fixed ``ε = std``.

    Example:
        >>> import torch
        >>> GaussianNoise(std=0.1).on_logits(torch.zeros(2, 4), None, None).shape
        torch.Size([2, 4])
    """

    kind: ClassVar[str] = "gaussian"
    std: float = 1.0

    def __post_init__(self) -> None:
        check_positive("std", self.std)

    def on_logits(self, logits_TE: Tensor, noise_scale_TE: Tensor | None, generator: torch.Generator | None) -> Tensor:
        return logits_TE + self.std * _normal_like(logits_TE, generator)

    def standard_deviation(self, logits_TE: Tensor, noise_scale_TE: Tensor | None) -> Tensor:
        return torch.full_like(logits_TE, self.std, requires_grad=False)


@dataclass(frozen=True, repr=False)
class LearnedNoise(Noise):
    """``z + σ(x) · N(0, 1)`` with a learned scale ``σ`` from the gate (noisy top-k, Shazeer 2017, arXiv 1701.06538).

    The scale is an argument of ``route``; ``NoisyLinearGate`` gives it.
    """

    kind: ClassVar[str] = "learned"

    def on_logits(self, logits_TE: Tensor, noise_scale_TE: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if noise_scale_TE is None:
            raise ValueError(
                "This rule has a learned noise, so training needs noise_scale, shaped like the logits: "
                "use a NoisyLinearGate in the layer, or pass route(..., noise_scale=gate.noise_scale(hidden))."
            )
        return logits_TE + noise_scale_TE * _normal_like(logits_TE, generator)


@dataclass(frozen=True, repr=False)
class InputJitter(Noise):
    """``x · U(1 - ε, 1 + ε)`` on what the gate sees (Switch, arXiv 2101.03961); the experts see ``x`` itself.

    Example:
        >>> import torch
        >>> bool(((InputJitter(0.01).on_hidden(torch.ones(100), None) - 1).abs() <= 0.0101).all())
        True
    """

    kind: ClassVar[str] = "input_jitter"
    epsilon: float = 1e-2

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)

    def on_hidden(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        uniform = torch.rand(hidden.shape, generator=generator, device=hidden.device, dtype=torch.float32)
        return hidden * (1.0 - self.epsilon + 2.0 * self.epsilon * uniform).to(hidden.dtype)


@dataclass(frozen=True, repr=False)
class GumbelNoise(Noise):
    """``z + scale · g`` with Gumbel ``g``: top-k then samples experts without replacement from ``softmax(z / scale)``.

    Source: the Gumbel-max trick and Gumbel top-k (Kool et al. 2019, arXiv 1903.06059).
    """

    kind: ClassVar[str] = "gumbel"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def on_logits(self, logits_TE: Tensor, noise_scale_TE: Tensor | None, generator: torch.Generator | None) -> Tensor:
        exponential_TE = torch.empty_like(logits_TE, requires_grad=False).exponential_(generator=generator)
        return logits_TE - self.scale * exponential_TE.log()


NOISES = family_of(GaussianNoise, LearnedNoise, InputJitter, GumbelNoise)
"""Every noise by its kind; a new one is a class here and a place in this line."""


def _normal_like(logits_TE: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(logits_TE.shape, generator=generator, device=logits_TE.device, dtype=logits_TE.dtype)
