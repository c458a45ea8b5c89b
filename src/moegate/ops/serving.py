"""What serves each operator here, and why: asked of PyTorch's dispatcher, not remembered from the build."""

import importlib.metadata
from dataclasses import dataclass

import torch

from moegate.ops.library import KERNELS, NAMESPACE
from moegate.ops.server import HAS_TRITON, SERVER, Server


@dataclass(frozen=True)
class Operator:
    """An operator, what it does, and what implements it, on this machine's CPU and on a GPU."""

    name: str
    purpose: str
    implementation: str
    reason: str
    gpu_implementation: str
    gpu_reason: str


_PURPOSES = {
    "wide_linear": "a router's float32 logits from bfloat16",
    "wide_linear_backward": "their gradients",
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
    "trained_mixture": "the same in training, with what the gradients need",
    "trained_mixture_backward": "the gradients of tokens, weights and experts",
    "grouped_mm": "one matrix product per expert over sorted rows",
}
_REFERENCE_ONLY = {
    "wide_linear": "on the CPU a router widens what it multiplies",
    "wide_linear_backward": "on the CPU a router widens what it multiplies",
    "grouped_mm": "matrix products are PyTorch's",
    "trained_mixture": "on the CPU a layer in training calls plan, permute, experts and combine",
    "trained_mixture_backward": "on the CPU a layer in training calls plan, permute, experts and combine",
}
# Where Python chooses between the kernel and the composition, by instruction set, the kernel has a name of its own.
_KERNEL_NAMES = {"experts_backward": "experts_backward_kernel"}
_TRITON_PACKAGES = ("triton", "pytorch-triton", "pytorch-triton-rocm", "pytorch-triton-xpu", "triton-windows")
_LEFT_TO_THE_REFERENCE = "float64 goes to the reference"


def operators() -> tuple[Operator, ...]:
    """Every operator of the library with the implementations that serve it.

    Example:
        >>> [operator.name for operator in operators()][:2]
        ['wide_linear', 'wide_linear_backward']
    """
    return tuple(Operator(name, purpose, *_on_cpu(name), *_on_gpu(name)) for name, purpose in _PURPOSES.items())


def _on_cpu(name: str) -> tuple[str, str]:
    if SERVER is Server.INTERPRETER and _has_kernel(name, "CPU"):
        return f"kernel ({triton_name()}, interpreted)", "asked for by MOEGATE_KERNEL=triton"
    if KERNELS.loaded and _has_kernel(_KERNEL_NAMES.get(name, name), "CPU"):
        return "kernel (C++)", KERNELS.reason
    return "reference (PyTorch)", _REFERENCE_ONLY.get(name, KERNELS.reason)


def _on_gpu(name: str) -> tuple[str, str]:
    if SERVER is Server.REFERENCES:
        return "reference (PyTorch)", KERNELS.reason
    if not HAS_TRITON:
        return "reference (PyTorch)", "Triton is not installed"
    if not _has_kernel(name, "CUDA"):
        return "reference (PyTorch)", "there is no Triton kernel for it"
    return f"kernel ({triton_name()})", _LEFT_TO_THE_REFERENCE


def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


def triton_name() -> str:
    """Triton with its version, without importing it; builds of PyTorch bring it under several names.

    Example:
        >>> triton_name().startswith("Triton")
        True
    """
    for package in _TRITON_PACKAGES:
        try:
            return f"Triton {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "Triton"
