"""The experts implementation "moegate" of transformers: ``model.set_experts_implementation("moegate")``.

What transformers calls with the hidden states, the chosen experts and their weights, runs here: rows sorted by expert,
two products, and the way back, with the kernels of moegate where they know the layout and the activation, and with the
module's own ``_apply_gate`` or ``act_fn`` between moegate's products elsewhere. Importing this module registers it.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moegate.ops.combine import combine
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.grouped_mm import grouped_mm
from moegate.ops.mixture import mixture
from moegate.ops.permute import permute
from moegate.ops.permute.reference import wide_type
from moegate.ops.synchronization import may_look
from moegate.ops.transforms import is_transformed

try:
    from transformers import activations
    from transformers.integrations import moe
except ImportError as error:
    raise ImportError(
        "moegate.hf works on the models of transformers 5, which is not installed: run pip install 'moegate[hf]'."
    ) from error

__all__ = ["NAME", "Networks", "experts_forward", "run_networks"]

NAME = "moegate"
"""The name of the implementation, for ``set_experts_implementation`` and ``from_pretrained``."""

_SILU = (nn.SiLU, activations.SiLUActivation)
_KERNELS: dict[bool, dict[object, str]] = {
    # By has_gate. Of modules the class counts, of functions the function itself.
    True: dict.fromkeys((*_SILU, functional.silu), "swiglu")
    | dict.fromkeys((activations.GELUActivation, functional.gelu), "geglu"),
    False: dict.fromkeys((*_SILU, functional.silu), "silu")
    | dict.fromkeys((activations.GELUActivation, functional.gelu), "gelu")
    | dict.fromkeys((nn.ReLU, functional.relu), "relu")
    | {activations.ReLUSquaredActivation: "relu2"},
}
"""The activations that moegate's kernels know, by what the module holds as ``act_fn``."""


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The weighted sum of the chosen experts' outputs; what ``ExpertsInterface`` calls as the module's forward.

    Args:
        self: an experts module of transformers, with its own layout: transposed, biased, interleaved, without a gate,
            with a norm behind the experts.
        hidden_states: ``[T, D]``.
        top_k_index: ``[T, K]`` integers. A slot below 0, or at or above the experts that the module holds, is empty, as
            expert parallelism marks the experts of other ranks.
        top_k_weights: ``[T, K]``.

    Returns:
        ``[T, D]`` in the type of the hidden states.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
        >>> model, tokens = MixtralForCausalLM(config).eval(), torch.tensor([[1, 2, 3]])
        >>> logits = model(tokens).logits
        >>> model.set_experts_implementation("moegate")
        >>> torch.allclose(model(tokens).logits, logits, atol=1e-5)
        True
    """
    has_gate = getattr(self, "has_gate", True)
    # Read once: a parametrised weight (quantized, with an adapter) is made anew each time.
    up: Any = getattr(self, "gate_up_proj" if has_gate else "up_proj", None)
    down: Any = getattr(self, "down_proj", None)
    reason = _why_not(up, down, hidden_states)
    if reason:
        _warn_once(type(self).__name__, reason)
        return _own_forward(self)(self, hidden_states, top_k_index, top_k_weights)
    if up.shape[0] != down.shape[0]:  # LongCat-Flash has rows for experts that do nothing
        up = up[: down.shape[0]]
    index_TK = _held_experts(top_k_index, down.shape[0])
    rows_TD = hidden_states.to(_type_of_products(hidden_states, up))
    activation = _kernel_of(self, has_gate)
    if activation is None:
        out_TD = _composed(self, rows_TD, index_TK, top_k_weights, (up, down))
    else:
        weights_TK = top_k_weights.to(wide_type(rows_TD.dtype))
        out_TD = mixture(rows_TD, index_TK, weights_TK, up.to(rows_TD.dtype), down.to(rows_TD.dtype), activation)
    return out_TD.to(hidden_states.dtype)


def _composed(
    experts: nn.Module, hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, projections: tuple[Tensor, Tensor]
) -> Tensor:
    """moegate's plan and ways around products with what the module does between them by itself."""
    places = dispatch_plan(index_TK, projections[0].shape[0])
    rows_RD = permute(hidden_TD, places.slot, places.inverse)
    out_RD = run_networks(Networks.of(experts, projections, rows_RD.dtype), rows_RD, places.offsets)
    return combine(out_RD, places.slot, places.inverse, weights_TK)


@dataclass(frozen=True, eq=False)
class Networks:
    """The experts of a module in one layout, as views.

    Attributes:
        up: ``[E, D, 2F or F]``.
        down: ``[E, F, D]``.
        up_bias: ``[E, 2F or F]``, or None.
        down_bias: ``[E, D]``, or None.
        between: the activation, with the gate where there is one.
        behind: a norm of the outputs, or None.
    """

    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    between: Callable[[Tensor], Tensor]
    behind: Callable[[Tensor], Tensor] | None

    @classmethod
    def of(cls, experts: Any, projections: tuple[Tensor, Tensor], dtype: torch.dtype) -> "Networks":
        has_gate, biases = getattr(experts, "has_gate", True), (None, None)
        up, down = (weight.to(dtype) for weight in projections)
        if not getattr(experts, "is_transposed", False):
            up, down = up.mT, down.mT
        if getattr(experts, "has_bias", False):
            up_bias = experts.gate_up_proj_bias if has_gate else experts.up_proj_bias
            biases = (up_bias.to(dtype), experts.down_proj_bias.to(dtype))
        gate = getattr(experts, "_apply_gate", None) or partial(moe._default_apply_gate, experts)
        between = gate if has_gate else experts.act_fn
        behind = experts.post_expert_norm if getattr(experts, "has_post_expert_norm", False) else None
        return cls(up, down, *biases, between, behind)


_ROWS_TO_STAY = 16
"""Rows per expert from which on it pays to stay with one expert; below, what lies between the products runs once."""


def run_networks(networks: Networks, rows_RD: Tensor, offsets_E: Tensor) -> Tensor:
    """The outputs ``[R, D]`` of rows that are sorted by expert; ``offsets_E`` holds the end of each expert's."""
    graph = _wants_gradient(rows_RD, networks.up, networks.down)
    few = rows_RD.shape[0] < _ROWS_TO_STAY * networks.up.shape[0]
    # To stay with one, the host must know where its rows end.
    stays = may_look(offsets_E) and not (graph or few or is_transformed())
    return (_one_by_one if stays else _all_at_once)(networks, rows_RD, offsets_E)


def _all_at_once(networks: Networks, rows_RD: Tensor, offsets_E: Tensor) -> Tensor:
    """Two grouped products; rows that belong to no expert, which a compiler has, give anything finite."""
    row_R = torch.arange(rows_RD.shape[0], device=rows_RD.device)
    expert_R = torch.searchsorted(offsets_E, row_R, right=True).clamp(max=offsets_E.shape[0] - 1)
    up_R = _products(rows_RD, networks.up, offsets_E)
    if networks.up_bias is not None:
        up_R = up_R + networks.up_bias[expert_R]
    out_RD = _products(networks.between(up_R).to(rows_RD.dtype), networks.down, offsets_E)
    if networks.down_bias is not None:
        out_RD = out_RD + networks.down_bias[expert_R]
    return out_RD if networks.behind is None else networks.behind(out_RD)


def _one_by_one(networks: Networks, rows_RD: Tensor, offsets_E: Tensor) -> Tensor:
    """Each expert from its first product to its last, while its rows are in the cache."""
    out_RD, start = torch.empty_like(rows_RD), 0
    for expert, end in enumerate(offsets_E.tolist()):
        if end > start:
            up = _product(rows_RD[start:end], networks.up, networks.up_bias, expert)
            out = _product(networks.between(up).to(rows_RD.dtype), networks.down, networks.down_bias, expert)
            out_RD[start:end] = out if networks.behind is None else networks.behind(out)
        start = end
    return out_RD


def _products(rows_RI: Tensor, weight_EIO: Tensor, offsets_E: Tensor) -> Tensor:
    """Each expert's product: PyTorch's own, which leaves rows without an expert unwritten, where there are none."""
    graph = _wants_gradient(rows_RI, weight_EIO) or torch.compiler.is_compiling() or is_transformed()
    # PyTorch's asks for rows whose bytes are a multiple of 16.
    odd = any(size * rows_RI.element_size() % 16 for size in weight_EIO.shape[1:])
    if graph or odd or not rows_RI.is_cpu or rows_RI.dtype is torch.float64:
        return grouped_mm(rows_RI, weight_EIO.mT, offsets_E)
    return functional.grouped_mm(rows_RI, weight_EIO, offs=offsets_E.to(torch.int32))


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, expert: int) -> Tensor:
    return rows @ weight[expert] if bias is None else torch.addmm(bias[expert], rows, weight[expert])


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _held_experts(index_TK: Tensor, num_experts: int) -> Tensor:
    """The indices with -1 for every slot that names no expert of this module."""
    if index_TK.dtype not in (torch.int64, torch.int32):
        index_TK = index_TK.long()
    return index_TK.masked_fill((index_TK < 0) | (index_TK >= num_experts), -1)


def _type_of_products(hidden_TD: Tensor, up: Tensor) -> torch.dtype:
    """What the products are taken in: the type of autocast where it is on, else that of the weights."""
    device = hidden_TD.device.type
    if hidden_TD.dtype is not torch.float64 and device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return up.dtype


def _kernel_of(experts: nn.Module, has_gate: bool) -> str | None:
    """The name that moegate's kernels know the module's layout and activation by; None where they do not."""
    for feature in ("has_bias", "is_transposed", "has_post_expert_norm"):
        if getattr(experts, feature, False):
            return None
    if has_gate and (not getattr(experts, "is_concatenated", True) or _has_own_gate(experts)):
        return None
    act_fn = getattr(experts, "act_fn", None)
    if isinstance(act_fn, nn.Module):
        # Somebody who hooks the activation wants to see it run.
        return None if _is_hooked(act_fn) else _KERNELS[has_gate].get(type(act_fn))
    return _KERNELS[has_gate].get(act_fn)


def _has_own_gate(experts: nn.Module) -> bool:
    default = moe._default_apply_gate
    return "_apply_gate" in vars(experts) or getattr(type(experts), "_apply_gate", default) is not default


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _why_not(up: Any, down: Any, hidden_states: Tensor) -> str:
    """Why the module's own code must run; empty where moegate can."""
    for weight in (up, down):
        if not isinstance(weight, Tensor):
            return f"they hold no tensors named as transformers names them (found {type(weight).__name__})"
        if type(weight) not in (Tensor, nn.Parameter) and not torch.compiler.is_compiling():
            return f"their weights are {type(weight).__name__}, which only their own code can read"
        if weight.ndim != 3 or weight.dtype not in _FLOATING:
            return f"their weights are {tuple(weight.shape)} of {weight.dtype}, which only their own code can read"
        if weight.is_meta and not hidden_states.is_meta:
            raise RuntimeError(
                "The experts' weights are on the meta device while the hidden states are on "
                f"{hidden_states.device}: the model was not loaded, or offloaded without the hooks of accelerate."
            )
    return ""


_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _own_forward(experts: nn.Module) -> Callable[..., Tensor]:
    """The forward that the class was written with: below a swap, and below the decorator of the interface."""
    forward = getattr(type(experts), "own_class", type(experts)).forward
    own: Callable[..., Tensor] = getattr(forward, "__wrapped__", forward)
    return own


def _warn_once(name: str, reason: str) -> None:
    if not torch.compiler.is_compiling():
        _warn(name, reason)


@lru_cache(maxsize=256)
def _warn(name: str, reason: str) -> None:
    warnings.warn(f"{name} run their own code and not moegate's: {reason}.", UserWarning, stacklevel=4)


moe.ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
with suppress(ImportError):  # a table of its own, for experts in 8 bits, which run their own code
    from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS

    ALL_FP8_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
