"""What the experts of a layer received: the indices and weights that they were called with, seen by a hook.

Nothing is derived from logits: a biased or grouped router chooses other experts than their order says.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.layers import MoELayer

__all__ = ["Received", "watch"]


@dataclass(frozen=True, eq=False)
class Received:
    """One call of a layer's experts.

    ``expert_index`` ``[T, K]`` integers and ``weights`` ``[T, K]`` are the tensors that the experts received, not copies;
    -1 marks a slot without an expert.
    """

    expert_index: Tensor
    weights: Tensor


def watch(layer: MoELayer, see: Callable[[Received], None]) -> RemovableHandle:
    """Calls ``see`` with what the layer's experts receive, before each call; the handle's ``remove`` ends it."""
    return _CALLS[layer.row.receives](layer, see)


def _top_k(layer: MoELayer, see: Callable[[Received], None]) -> RemovableHandle:
    """``experts(hidden_states, top_k_index, top_k_weights)``, by position or by name."""
    names = list(inspect.signature(layer.experts.forward).parameters)

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = dict(zip(names, args, strict=False)) | kwargs
        see(Received(call["top_k_index"], call["top_k_weights"]))

    return layer.experts.register_forward_pre_hook(hook, with_kwargs=True)


_CALLS: dict[str, Callable[[MoELayer, Callable[[Received], None]], RemovableHandle]] = {"top_k": _top_k}
