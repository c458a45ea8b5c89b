"""Scores: how a logit becomes the number that weights are made of.

``scores`` is the differentiable formula; ``selection_scores`` is the same in the portable arithmetic of
``moegate.ops.portable``, for an order that no device changes. Every function here uses ``exp`` and ``log1p`` only, in
forms whose bits do not depend on where an element lies in its tensor. (``torch.sigmoid`` and
``torch.nn.functional.softplus`` round the last elements of a chunk differently on CPU, so that a row's score would
depend on the batch around it.)
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moegate.ops.portable import portable_sigmoid, portable_softmax, portable_sqrt_softplus
from moegate.parts import Part, family_of


@dataclass(frozen=True, repr=False)
class Score(Part):
    """How logits become scores.

    ``monotone``: within a row, a greater logit never has a smaller score. Without a bias the selection is then
    made on the logits, so that scores which saturate still rank as their logits do. ``elementwise``: the score of an
    expert depends on its own logit alone, so that those of the chosen experts are all that weights need.
    """

    monotone: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False

    def scores(self, logits_TE: Tensor) -> Tensor:
        """``[T, E]`` scores of ``[T, E]`` logits."""
        raise TypeError(f"{type(self).__name__} is abstract: choose one of {', '.join(SCORES)}.")

    def shares(self, logits_TE: Tensor, scores_TE: Tensor) -> Tensor:
        """``[T, E]`` non-negative numbers that make a token's probabilities when divided by their sum."""
        return scores_TE

    def selection_scores(self, logits_TE: Tensor) -> Tensor:
        """``[T, E]``, without a gradient: what a selection bias is added to, in bits that every device gives."""
        return self.scores(logits_TE)

    def weights(self, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor) -> Tensor:
        """``[T, K]`` raw weights of the chosen experts; those of empty slots (``-1``) are 0."""
        return gather_slots(scores_TE, index_TK, fill=0.0)


@dataclass(frozen=True, repr=False)
class Softmax(Score):
    """Softmax over all experts, before the selection: ``s = softmax(z)`` (Shazeer 2017, Switch, Mixtral).

    Example:
        >>> import torch
        >>> Softmax().scores(torch.zeros(1, 4)).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """

    kind: ClassVar[str] = "softmax"

    def scores(self, logits_TE: Tensor) -> Tensor:
        return logits_TE.softmax(dim=-1)

    def selection_scores(self, logits_TE: Tensor) -> Tensor:
        return portable_softmax(logits_TE)


@dataclass(frozen=True, repr=False)
class SoftmaxSelected(Score):
    """Softmax over the selected logits only, after the selection: ``w = softmax(z[chosen])`` (gpt-oss).

    A bias is added to the logits. The scores that losses and metrics read are the softmax over all experts.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 1.0, 9.0]])
        >>> SoftmaxSelected().weights(logits, logits, torch.tensor([[0, 1]])).tolist()
        [[0.5, 0.5]]
    """

    kind: ClassVar[str] = "softmax_selected"

    def scores(self, logits_TE: Tensor) -> Tensor:
        return logits_TE.softmax(dim=-1)

    def selection_scores(self, logits_TE: Tensor) -> Tensor:
        return logits_TE

    def weights(self, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor) -> Tensor:
        chosen_TK = gather_slots(logits_TE, index_TK, fill=float("-inf"))
        # A token without any expert would be 0/0; its slots are all empty, so any finite value will do.
        chosen_TK = chosen_TK.masked_fill((index_TK < 0).all(dim=-1, keepdim=True), 0.0)
        return chosen_TK.softmax(dim=-1).masked_fill(index_TK < 0, 0.0)


@dataclass(frozen=True, repr=False)
class Sigmoid(Score):
    """``s = 1 / (1 + exp(-z))``, each expert for itself (DeepSeek-V3, Llama 4).

    Example:
        >>> import torch
        >>> Sigmoid().scores(torch.tensor([[0.0, 200.0, -200.0]])).tolist()
        [[0.5, 1.0, 0.0]]
    """

    kind: ClassVar[str] = "sigmoid"
    elementwise: ClassVar[bool] = True

    def scores(self, logits_TE: Tensor) -> Tensor:
        # No exponent is positive, so nothing overflows; at 0 the minimum passes half of the gradient, and |z| none,
        # which together is the sigmoid's own slope there.
        numerator_TE = torch.minimum(logits_TE, logits_TE.new_zeros(())).exp()
        return numerator_TE / (1.0 + (-logits_TE.abs()).exp())

    def selection_scores(self, logits_TE: Tensor) -> Tensor:
        return portable_sigmoid(logits_TE)


@dataclass(frozen=True, repr=False)
class SqrtSoftplus(Score):
    """``s = sqrt(log(1 + exp(z)))``, unbounded above (DeepSeek-V4), without overflow or a lost gradient.

    Example:
        >>> import torch
        >>> SqrtSoftplus().scores(torch.tensor([[10000.0, -200.0]])).tolist()
        [[100.0, 3.783505853677006e-44]]
    """

    kind: ClassVar[str] = "sqrt_softplus"
    elementwise: ClassVar[bool] = True

    # Below this, log(1 + exp(z)) is exp(z) to float64 precision, and its root is exp(z / 2).
    _TAIL: ClassVar[float] = -40.0

    def scores(self, logits_TE: Tensor) -> Tensor:
        in_tail_TE = logits_TE < self._TAIL
        body_TE = logits_TE.masked_fill(in_tail_TE, 0.0)
        softplus_TE = torch.maximum(body_TE, body_TE.new_zeros(())) + (-body_TE.abs()).exp().log1p()
        # Outside the tail its exponential could overflow, and an infinite branch not taken still spoils the gradient.
        tail_TE = logits_TE.masked_fill(~in_tail_TE, 0.0)
        return torch.where(in_tail_TE, (tail_TE / 2).exp(), softplus_TE.sqrt())

    def selection_scores(self, logits_TE: Tensor) -> Tensor:
        return portable_sqrt_softplus(logits_TE)


@dataclass(frozen=True, repr=False)
class Identity(Score):
    """``s = z``: the logits themselves.

    Example:
        >>> import torch
        >>> Identity().scores(torch.tensor([[1.0, -2.0]])).tolist()
        [[1.0, -2.0]]
    """

    kind: ClassVar[str] = "identity"
    elementwise: ClassVar[bool] = True

    def scores(self, logits_TE: Tensor) -> Tensor:
        return logits_TE

    def shares(self, logits_TE: Tensor, scores_TE: Tensor) -> Tensor:
        # A logit may be negative, so it is no share of anything; its softmax is.
        return logits_TE.softmax(dim=-1)


@dataclass(frozen=True, repr=False)
class ReLU(Score):
    """``s = max(z, 0)``: an expert without a positive logit has no weight (ReMoE, arXiv 2412.14711).

    Example:
        >>> import torch
        >>> ReLU().scores(torch.tensor([[1.0, -2.0]])).tolist()
        [[1.0, 0.0]]
    """

    kind: ClassVar[str] = "relu"
    elementwise: ClassVar[bool] = True

    def scores(self, logits_TE: Tensor) -> Tensor:
        return logits_TE.relu()


@dataclass(frozen=True, repr=False)
class Constant(Score):
    """``s = 1`` for every expert: the weights do not depend on the logits (hash layers, random routing).

    Example:
        >>> import torch
        >>> Constant().scores(torch.tensor([[5.0, -2.0]])).tolist()
        [[1.0, 1.0]]
    """

    kind: ClassVar[str] = "constant"

    def scores(self, logits_TE: Tensor) -> Tensor:
        return torch.ones_like(logits_TE, requires_grad=False)


SCORES = family_of(Softmax, SoftmaxSelected, Sigmoid, SqrtSoftplus, Identity, ReLU, Constant)
"""Every score by its kind; a new one is a class here and a place in this line."""


def gather_slots(values_TE: Tensor, index_TK: Tensor, fill: float) -> Tensor:
    """``[T, K]`` values of the chosen experts, ``fill`` in empty slots.

    Example:
        >>> import torch
        >>> gather_slots(torch.tensor([[1.0, 2.0]]), torch.tensor([[1, -1]]), fill=0.0).tolist()
        [[2.0, 0.0]]
    """
    return values_TE.gather(-1, index_TK.clamp(min=0)).masked_fill(index_TK < 0, fill)
