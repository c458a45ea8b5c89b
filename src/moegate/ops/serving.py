"""What serves each operator here, and why: asked of PyTorch's dispatcher, not remembered from the build."""

from dataclasses import dataclass

import torch

from moegate.ops.library import KERNELS, NAMESPACE


@dataclass(frozen=True)
class Operator:
    """An operator, what it does, and what implements it on this machine's CPU."""

    name: str
    purpose: str
    implementation: str
    reason: str


_PURPOSES = {
    "topk_gate": "experts and weights from logits, in one pass",
    "topk_gate_backward": "the gradient of the weights, from [T, K] data",
    "portable_scores": "scores with the same bits on every device",
    "ordered_topk": "top-k with a total order: ties by index, NaN last",
    "dispatch_plan": "rows sorted by expert, and the way back",
    "permute": "tokens to the experts' rows",
    "combine": "the experts' rows to tokens, weighted",
    "experts": "the feed-forward networks on sorted rows",
    "experts_backward": "their gradients",
    "mixture": "plan, permute, experts and combine in one call, without gradients",
    "grouped_mm": "one matrix product per expert over sorted rows",
}
_REFERENCE_ONLY = {"grouped_mm": "matrix products are PyTorch's"}
# Where Python chooses between the kernel and the composition, by instruction set, the kernel has a name of its own.
_KERNEL_NAMES = {"experts_backward": "experts_backward_kernel"}


def operators() -> tuple[Operator, ...]:
    """Every operator of the library with the implementation that serves it on the CPU.

    Example:
        >>> [operator.name for operator in operators()][:2]
        ['topk_gate', 'topk_gate_backward']
    """
    return tuple(_served(name, purpose) for name, purpose in _PURPOSES.items())


def _served(name: str, purpose: str) -> Operator:
    kernel = f"{NAMESPACE}::{_KERNEL_NAMES.get(name, name)}"
    if KERNELS.loaded and torch._C._dispatch_has_kernel_for_dispatch_key(kernel, "CPU"):
        return Operator(name, purpose, "kernel (C++)", KERNELS.reason)
    reason = _REFERENCE_ONLY.get(name, KERNELS.reason)
    return Operator(name, purpose, "reference (PyTorch)", reason)
