"""Experts: the feed-forward networks behind the router, in one tensor per projection."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from moegate.ops.experts import ACTIVATIONS, GATED, PLAIN, experts
from moegate.ops.experts.activations import number_of
from moegate.ops.experts.gradient import experts_adding_gradients
from moegate.ops.transforms import is_transformed
from moegate.parts import check_choice, check_positive_integer
from moegate.precision import in_autocast

__all__ = ["Experts", "SharedExperts"]


class Experts(nn.Module):
    """``E`` feed-forward networks, applied to rows that are sorted by expert.

    Gated activations (``swiglu``, ``geglu``): ``down(act(gate x) · (up x))`` with ``gate_up_proj [E, 2F, D]``,
    gate rows first. Plain ones (``gelu``, ``relu2``, ``relu``, ``silu``): ``down(act(up x))`` with
    ``up_proj [E, F, D]``. ``down_proj`` is ``[E, D, F]``. This is the layout of Hugging Face transformers 5.

    If both weights carry a buffer ``main_grad`` (contiguous, their shape, their type or float32), the backward adds
    their gradients to it and leaves ``.grad`` alone, as Megatron-LM's gradient accumulation fusion does: no gradient
    tensors, no pass over all weights, and nothing to do for experts without rows.

    Example:
        >>> import torch
        >>> experts = Experts(num_experts=2, hidden_size=8, intermediate_size=16)
        >>> experts(torch.randn(5, 8), torch.tensor([3, 5])).shape
        torch.Size([5, 8])
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, activation: str = "swiglu") -> None:
        super().__init__()
        for name, value in (
            ("num_experts", num_experts),
            ("hidden_size", hidden_size),
            ("intermediate_size", intermediate_size),
        ):
            check_positive_integer(name, value)
        check_choice("activation", activation, ACTIVATIONS)
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.activation = activation
        if activation in GATED:
            self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        else:
            self.up_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew, uniform in ``±1/sqrt(inputs)``, as ``torch.nn.Linear`` starts."""
        for parameter in self.parameters():
            bound = 1.0 / math.sqrt(parameter.shape[-1])
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, rows_RD: Tensor, offsets_E: Tensor) -> Tensor:
        """The outputs ``[R, D]`` of rows that are sorted by expert.

        Args:
            rows_RD: ``[R, D]``.
            offsets_E: ``[E]`` int64, the end of each expert's rows. Rows beyond the last belong to no expert; their
                output is 0.
        """
        rows_RD, up, down_EDF = in_autocast(rows_RD), self.up_weights, self.down_proj
        buffers = _gradient_buffers(up, down_EDF)
        if buffers is None:
            return experts(rows_RD, up, down_EDF, offsets_E, self.activation)
        return experts_adding_gradients(rows_RD, up, down_EDF, offsets_E, number_of(self.activation), buffers)

    @property
    def adds_gradients(self) -> bool:
        """Whether a backward would add to ``main_grad`` buffers."""
        return _gradient_buffers(self.up_weights, self.down_proj) is not None

    @property
    def up_weights(self) -> nn.Parameter:
        """``gate_up_proj`` or ``up_proj``, whichever the activation asks for."""
        return self.gate_up_proj if self.activation in GATED else self.up_proj

    def extra_repr(self) -> str:
        """The sizes, for ``print(module)``."""
        return f"{self.num_experts}, {self.hidden_size}, {self.intermediate_size}, activation={self.activation!r}"


class SharedExperts(nn.Module):
    """Experts that every token goes to, as one network of their joint width (DeepSeekMoE, arXiv 2401.06066).

    Example:
        >>> import torch
        >>> SharedExperts(8, 32)(torch.randn(5, 8)).shape
        torch.Size([5, 8])
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str = "swiglu") -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        self.activation = activation
        if activation in GATED:
            self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor, weights: Tensor | None = None) -> Tensor:
        """The output ``[..., D]`` of hidden states ``[..., D]``; ``weights`` ``[..., S]`` weigh equal parts of it."""
        if self.activation in GATED:
            inner = GATED[self.activation](_linear(hidden, self.gate_proj)) * _linear(hidden, self.up_proj)
        else:
            inner = PLAIN[self.activation](_linear(hidden, self.up_proj))
        if weights is not None:
            inner = inner * weights.to(inner.dtype).repeat_interleave(inner.shape[-1] // weights.shape[-1], dim=-1)
        return _linear(inner, self.down_proj)

    def reset_parameters(self) -> None:
        """Draws all weights anew, as ``torch.nn.Linear`` does."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()


def _gradient_buffers(up: Tensor, down_EDF: Tensor) -> tuple[Tensor, Tensor] | None:
    """The ``main_grad`` of both weights, where a backward may add to them."""
    grad_up, grad_down = getattr(up, "main_grad", None), getattr(down_EDF, "main_grad", None)
    return None if grad_up is None or grad_down is None or not _may_add_in_place() else (grad_up, grad_down)


def _may_add_in_place() -> bool:
    """Whether a backward may change buffers beside it: neither a compiler nor ``torch.func`` could follow that."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not is_transformed()


def _linear(hidden: Tensor, layer: nn.Linear) -> Tensor:
    """The layer's product in the type of the hidden states, as in ``Experts``."""
    return functional.linear(hidden, layer.weight.to(hidden.dtype))
