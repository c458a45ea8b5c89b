"""Weighting: from the scores of the chosen experts to the weights of their outputs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.parts import Part, check_bool, check_choice, check_number, check_positive


@dataclass(frozen=True, repr=False)
class Weighting(Part):
    """``w = s``, or ``w = s / (norm of the chosen s + eps)``; then ``w · scale``, a rounding of its own.

    Args:
        renormalize: divide by the sum over the chosen experts.
        eps: added to that sum; the default keeps a row of zero scores at zero and changes no other.
        scale: a constant factor (``routed_scaling_factor`` in Hugging Face configurations).
        apply_to: ``"output"``: the weight multiplies what the expert returns. ``"input"``: it multiplies what the
            expert receives (Llama 4), which for a non-linear expert is not the same.
        order: the order of the norm that is divided by; 1 is the sum, 2 the Euclidean norm (DBRX's
            ``moe_normalize_expert_weights``).
        floor: what is divided by is at least this (ERNIE 4.5's ``moe_norm_min``).

    Example:
        >>> import torch
        >>> Weighting(renormalize=True, scale=2.5).weigh(torch.tensor([[0.6, 0.2]]))
        tensor([[1.8750, 0.6250]])
    """

    kind: ClassVar[str] = "weighting"
    renormalize: bool = False
    eps: float = 1e-20
    scale: float = 1.0
    apply_to: str = "output"
    order: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        check_bool("renormalize", self.renormalize)
        check_positive("order", self.order)
        for name in ("eps", "floor"):
            check_number(name, getattr(self, name))
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        check_choice("apply_to", self.apply_to, ("output", "input"))

    def weigh(self, chosen_TK: Tensor) -> Tensor:
        """``[T, K]`` weights from the raw weights of the chosen experts (0 in empty slots)."""
        weights_TK = chosen_TK
        if self.renormalize:
            weights_TK = weights_TK / self._norm(weights_TK)
        return weights_TK if self.scale == 1.0 else weights_TK * self.scale

    def _norm(self, chosen_TK: Tensor) -> Tensor:
        if self.order == 1.0:
            norm_T1 = chosen_TK.sum(dim=-1, keepdim=True)
        else:
            norm_T1 = torch.linalg.vector_norm(chosen_TK, ord=self.order, dim=-1, keepdim=True)
        norm_T1 = norm_T1 + self.eps
        return norm_T1.clamp(min=self.floor) if self.floor else norm_T1
