"""The live logits of a layer's gate, with their graph, and the probabilities that losses and entropies read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.layers import MoELayer
from moegate.probability import normalized
from moegate.scoring import Score, Softmax

__all__ = ["probabilities", "score_of", "watch_logits"]

_PLACE = {"switch_transformers": 2, "nllb_moe": 2, "jetmoe": 4, "llama4": 1}
"""Where the logits stand in what a gate returns; 0 for most families."""


def watch_logits(layer: MoELayer, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Calls ``see`` with the ``[T, E]`` logits of each call of the layer's gate; the handle's ``remove`` ends it.

    Gates that return none (LongCat's returns indices only) are never seen.
    """
    place = _PLACE.get(layer.family, 0)

    @torch.compiler.disable
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        logits = output if isinstance(output, Tensor) else output[place]
        if isinstance(logits, Tensor) and logits.is_floating_point() and logits.shape[-1] == layer.num_experts:
            see(logits.reshape(-1, layer.num_experts))

    return layer.gate.register_forward_hook(hook)


def score_of(layer: MoELayer) -> Score:
    """How the layer's rule makes scores of logits; a softmax where no rule says."""
    try:
        return layer.rule.score
    except ValueError:
        return Softmax()


def probabilities(logits_TE: Tensor, score: Score) -> Tensor:
    """``[T, E]`` float32: the scores of each token, normalised to sum to 1; differentiable.

    Example:
        >>> from moegate.scoring import Sigmoid
        >>> probabilities(torch.zeros(1, 4), Sigmoid()).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    wide_TE = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
    return normalized(score.shares(wide_TE, score.scores(wide_TE)))
