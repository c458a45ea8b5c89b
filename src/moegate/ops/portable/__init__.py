"""Scores whose float32 bits are the same on every device and every instruction set; see ``reference``.

``portable_scores`` is an operator, so that no compiler may fuse its roundings; the functions of the reference are what
it is made of.
"""

import torch
from torch import Tensor

from moegate.ops import library
from moegate.ops.portable.reference import (
    PORTABLE_SCORES,
    portable_exp,
    portable_log1p,
    portable_scores_reference,
    portable_sigmoid,
    portable_softmax,
    portable_sqrt_softplus,
)

__all__ = [
    "PORTABLE_SCORES",
    "portable_exp",
    "portable_log1p",
    "portable_scores",
    "portable_sigmoid",
    "portable_softmax",
    "portable_sqrt_softplus",
]


def _float32_reference(logits: Tensor, score: str) -> Tensor:
    if score not in PORTABLE_SCORES:
        raise RuntimeError(f"score must be one of {', '.join(PORTABLE_SCORES)}; got {score!r}.")
    return portable_scores_reference(logits.float(), score).contiguous()


library.define("portable_scores(Tensor logits, str score) -> Tensor", _float32_reference)
library.implement("portable_scores", "moegate.ops.portable.gpu_operator:portable_scores")
library.register_fake("portable_scores", lambda logits, score: logits.new_empty(logits.shape, dtype=torch.float32))


def portable_scores(logits_TE: Tensor, score: str) -> Tensor:
    """Scores that a selection may order by, with the same bits everywhere. No gradient.

    Args:
        logits_TE: ``[..., E]`` floating point; narrower types are widened to float32, float64 stays float64.
        score: ``"softmax"`` (over the last dimension), ``"sigmoid"`` or ``"sqrt_softplus"``.

    Returns:
        ``[..., E]`` float32, or float64 for float64.

    Raises:
        TypeError, ValueError: when the logits are not floating point, or the score is unknown.

    Example:
        >>> import torch
        >>> portable_scores(torch.tensor([[0.0, 200.0, -200.0]]), "sigmoid").tolist()
        [[0.5, 1.0, 0.0]]
    """
    if not isinstance(logits_TE, Tensor) or not logits_TE.is_floating_point():
        given = logits_TE.dtype if isinstance(logits_TE, Tensor) else type(logits_TE).__name__
        raise TypeError(f"logits must be a floating-point tensor [..., num_experts], got {given}.")
    if score not in PORTABLE_SCORES:
        raise ValueError(f"score must be one of {', '.join(PORTABLE_SCORES)}; got {score!r}.")
    if logits_TE.ndim == 0:
        raise ValueError("logits must have the shape [..., num_experts], got ().")
    logits_TE = logits_TE.detach()
    if logits_TE.dtype == torch.float64:
        return portable_scores_reference(logits_TE, score)
    scores: Tensor = torch.ops.moegate.portable_scores.default(logits_TE, score)
    return scores
