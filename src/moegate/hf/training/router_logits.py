"""The live logits of a layer's gate, with their graph, and the probabilities that losses and entropies read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.layers import MoELayer
from moegate.hf.logits import gate_logits
from moegate.probability import normalized
from moegate.scoring import Score, Softmax

__all__ = ["probabilities", "score_of", "watch_logits"]


def watch_logits(layer: MoELayer, see: Callable[[Tensor], None], *, graph: bool) -> RemovableHandle | None:
    """Calls ``see`` with the ``[T, E]`` logits of each call of the layer's gate; None where there is no gate.

    Gates return their logits in many forms, or don't; they are made anew, by the gate's own parameters.

    Args:
        layer: the layer.
        see: called in each forward of the gate, before it returns.
        graph: whether the logits keep their graph in training.
    """
    if layer.row.gate is None:
        return None

    def hook(gate: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        with torch.set_grad_enabled(graph and gate.training and torch.is_grad_enabled()):
            see(gate_logits(layer, *args, **kwargs).flatten(0, -2))

    return layer.gate.register_forward_hook(torch.compiler.disable(hook), with_kwargs=True)


def score_of(layer: MoELayer) -> Score:
    """How the layer's rule makes scores of logits; a softmax where no rule says.

    Example:
        >>> from moegate.hf.layers import moe_layers
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> score_of(moe_layers(model)[0])
        Softmax()
    """
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
