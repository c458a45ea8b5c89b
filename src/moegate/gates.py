"""Gates: hidden states in, logits out. They hold parameters and nothing else.

Parameters that should not decay (a learned scale, a temperature, a bias) are the ones with fewer than two
dimensions, as elsewhere in PyTorch models.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moegate.arguments import check_hidden
from moegate.ops.wide_linear import takes, wide_linear
from moegate.parts import check_choice, check_integer, check_positive, check_positive_integer
from moegate.precision import without_autocast

__all__ = ["CosineGate", "Gate", "LinearGate", "MLPGate", "NoisyLinearGate", "NormedGate", "ResidualGate"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class Gate(nn.Module):
    """A map from hidden states ``[..., D]`` to float32 logits ``[..., num_logits]``.

    Args:
        hidden_size: ``D``.
        num_experts: the number of logits; for Soft MoE, experts times slots.
        correction_bias: registers ``e_score_correction_bias``, a float32 buffer ``[E]`` for the selection, which a
            controller updates. It stays float32 when the model is converted to a narrower type. A number is the
            length of the buffer, for a rule that selects among another number of classes than there are logits.
        float32: compute the logits in float32 even if the model or autocast is narrower. On by default: narrow
            routers change which experts are chosen.
    """

    e_score_correction_bias: Tensor | None

    def __init__(
        self, hidden_size: int, num_experts: int, *, correction_bias: bool | int = False, float32: bool = True
    ) -> None:
        super().__init__()
        check_positive_integer("hidden_size", hidden_size)
        check_positive_integer("num_experts", num_experts)
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.float32 = float32
        num_biased = num_experts if correction_bias is True else correction_bias or 0
        check_integer("correction_bias", num_biased, least=0)
        bias_E = torch.zeros(num_biased, dtype=torch.float32) if num_biased else None
        self.register_buffer("e_score_correction_bias", bias_E)

    def forward(self, hidden: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        """Logits of hidden states.

        Args:
            hidden: ``[..., D]``.
            previous_logits: ``[..., E]``, the logits of the layer before; only ``ResidualGate`` reads them.
        """
        check_hidden(hidden, self.hidden_size)
        with without_autocast(hidden):
            return self.logits(self._widened(hidden)).to(_at_least_float32(hidden.dtype))

    def reset_parameters(self) -> None:
        """Sets all parameters anew, as after construction, and the selection bias to 0."""
        if self.e_score_correction_bias is not None:
            nn.init.zeros_(self.e_score_correction_bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """The gate's own map, on hidden states in the type to compute in."""
        raise TypeError(f"{type(self).__name__} does not say how it computes logits.")

    def noise_scale(self, hidden: Tensor) -> Tensor | None:
        """The standard deviation of a learned noise, shaped like the logits; None for gates without one."""
        return None

    def _widened(self, hidden: Tensor) -> Tensor:
        return hidden.to(_at_least_float32(hidden.dtype)) if self.float32 else hidden

    def _wide(self, parameter: Tensor, like: Tensor) -> Tensor:
        return parameter.to(like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Gate":
        """Moves and converts as every module does, except that the selection bias keeps its float32 values."""
        exact_E = self.e_score_correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved_E = self.e_score_correction_bias
        if exact_E is not None and moved_E is not None and moved_E.dtype != torch.float32:
            self.e_score_correction_bias = exact_E.to(moved_E.device)
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        """Loads as every module does; with ``assign=True`` a narrow checkpoint would else narrow the selection bias."""
        super()._load_from_state_dict(*args, **options)
        if self.e_score_correction_bias is not None:
            self.e_score_correction_bias = self.e_score_correction_bias.to(torch.float32)


class LinearGate(Gate):
    """``z = W x (+ b)``: the gate of almost every published model.

    Example:
        >>> import torch
        >>> LinearGate(16, 4)(torch.randn(2, 3, 16)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        bias: bool = False,
        correction_bias: bool | int = False,
        float32: bool = True,
    ) -> None:
        super().__init__(hidden_size, num_experts, correction_bias=correction_bias, float32=float32)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_experts)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        _reset_linear(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        if not (self.float32 and takes(hidden, self.weight) and type(self).logits is LinearGate.logits):
            return super().forward(hidden, previous_logits)
        check_hidden(hidden, self.hidden_size)
        # What widening both would give, without wide copies of all tokens.
        logits_TE = wide_linear(hidden.reshape(-1, self.hidden_size), self.weight)
        logits = logits_TE.view(*hidden.shape[:-1], self.num_experts)
        return logits if self.bias is None else logits + self.bias

    def logits(self, hidden: Tensor) -> Tensor:
        bias = None if self.bias is None else self._wide(self.bias, hidden)
        return functional.linear(hidden, self._wide(self.weight, hidden), bias)


class NoisyLinearGate(LinearGate):
    """A linear gate with a learned noise: ``σ(x) = softplus(W_noise x) + 0.01`` (Shazeer 2017, arXiv 1701.06538).

    Example:
        >>> import torch
        >>> bool((NoisyLinearGate(16, 4).noise_scale(torch.randn(2, 16)) > 0.01).all())
        True
    """

    def __init__(
        self, hidden_size: int, num_experts: int, *, correction_bias: bool | int = False, float32: bool = True
    ) -> None:
        super().__init__(hidden_size, num_experts, correction_bias=correction_bias, float32=float32)
        self.noise_weight = nn.Parameter(torch.zeros(num_experts, hidden_size))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "noise_weight"):  # not yet while the linear gate is being made
            nn.init.zeros_(self.noise_weight)

    def noise_scale(self, hidden: Tensor) -> Tensor:
        check_hidden(hidden, self.hidden_size)
        with without_autocast(hidden):
            wide = self._widened(hidden)
            scale = functional.softplus(functional.linear(wide, self._wide(self.noise_weight, wide))) + 1e-2
            return scale.to(_at_least_float32(hidden.dtype))


class MLPGate(Gate):
    """A small network: linear layers of ``hidden_sizes`` with an activation between them, then one to the logits.

    Example:
        >>> import torch
        >>> MLPGate(16, 4, hidden_sizes=(32, 32), activation="gelu")(torch.randn(5, 16)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        hidden_sizes: Sequence[int] = (64,),
        activation: str = "gelu",
        correction_bias: bool | int = False,
        float32: bool = True,
    ) -> None:
        super().__init__(hidden_size, num_experts, correction_bias=correction_bias, float32=float32)
        check_choice("activation", activation, tuple(_ACTIVATIONS))
        for size in hidden_sizes:
            check_positive_integer("hidden_sizes", size)
        sizes = (hidden_size, *hidden_sizes, num_experts)
        self.activation = activation
        self.weights = nn.ParameterList(torch.empty(to, of) for of, to in pairwise(sizes))
        self.biases = nn.ParameterList(torch.empty(to) for to in sizes[1:])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for weight, bias in zip(self.weights, self.biases, strict=True):
            _reset_linear(weight)
            nn.init.zeros_(bias)

    def logits(self, hidden: Tensor) -> Tensor:
        last = len(self.weights) - 1
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = functional.linear(hidden, self._wide(weight, hidden), self._wide(bias, hidden))
            if depth < last:
                hidden = _ACTIVATIONS[self.activation](hidden)
        return hidden


class CosineGate(Gate):
    """``z = τ · cos(W x, e_i)`` in a low dimension, with a learned temperature (X-MoE, arXiv 2204.09179).

    The factor ``τ`` is ``exp`` of a parameter and is kept at or below 100.

    Example:
        >>> import torch
        >>> gate = CosineGate(16, 4, projection_size=8, temperature=0.5)
        >>> bool((gate(torch.randn(9, 16)).abs() <= 2.0001).all())
        True
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        projection_size: int | None = None,
        temperature: float = 0.5,
        correction_bias: bool | int = False,
        float32: bool = True,
    ) -> None:
        super().__init__(hidden_size, num_experts, correction_bias=correction_bias, float32=float32)
        check_positive("temperature", temperature)
        projection_size = min(256, max(1, hidden_size // 2)) if projection_size is None else projection_size
        check_positive_integer("projection_size", projection_size)
        self.temperature = temperature
        self.projection = nn.Parameter(torch.empty(projection_size, hidden_size))
        self.weight = nn.Parameter(torch.empty(num_experts, projection_size))
        self.log_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        _reset_linear(self.projection)
        _reset_linear(self.weight)
        nn.init.constant_(self.log_scale, -math.log(self.temperature))

    def logits(self, hidden: Tensor) -> Tensor:
        projected = functional.linear(hidden, self._wide(self.projection, hidden))
        cosine = functional.linear(
            functional.normalize(projected, dim=-1),
            functional.normalize(self._wide(self.weight, hidden), dim=-1),
        )
        return cosine * self._wide(self.log_scale, hidden).clamp(max=math.log(100.0)).exp()


class NormedGate(Gate):
    """``z = W (RMSNorm(x) · g · D^-½)`` with a learned ``g`` per channel (Gemma 4): the input's norm is ignored.

    Example:
        >>> import torch
        >>> gate, x = NormedGate(16, 4), torch.randn(3, 16)
        >>> torch.allclose(gate(x), gate(100 * x), atol=1e-5)
        True
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        eps: float = 1e-6,
        correction_bias: bool | int = False,
        float32: bool = True,
    ) -> None:
        super().__init__(hidden_size, num_experts, correction_bias=correction_bias, float32=float32)
        self.eps = eps
        self.scale = nn.Parameter(torch.empty(hidden_size))
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.scale)
        # The logits are divided by sqrt(D), so the weights start that much greater.
        nn.init.uniform_(self.weight, -1.0, 1.0)

    def logits(self, hidden: Tensor) -> Tensor:
        normed = functional.rms_norm(hidden, (self.hidden_size,), eps=self.eps)
        scaled = normed * self._wide(self.scale, hidden) * self.hidden_size**-0.5
        return functional.linear(scaled, self._wide(self.weight, hidden))


class ResidualGate(LinearGate):
    """``z_l = W x + W_previous z_{l-1}``: each layer's router sees what the last one decided (MoE++, arXiv 2410.07348).

    The first layer passes no previous logits. ``W_previous`` starts at zero, so that training starts from a
    linear gate.

    Example:
        >>> import torch
        >>> first, second, x = ResidualGate(16, 4), ResidualGate(16, 4), torch.randn(5, 16)
        >>> second(x, first(x)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        previous_num_experts: int | None = None,
        correction_bias: bool | int = False,
        float32: bool = True,
    ) -> None:
        super().__init__(hidden_size, num_experts, correction_bias=correction_bias, float32=float32)
        self.previous_weight = nn.Parameter(torch.zeros(num_experts, previous_num_experts or num_experts))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "previous_weight"):  # not yet while the linear gate is being made
            nn.init.zeros_(self.previous_weight)

    def forward(self, hidden: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        logits = super().forward(hidden)
        if previous_logits is None:
            return logits
        expected = (*hidden.shape[:-1], self.previous_weight.shape[1])
        flat = (math.prod(hidden.shape[:-1]), self.previous_weight.shape[1])
        if tuple(previous_logits.shape) not in {expected, flat}:
            raise ValueError(f"previous_logits must be {expected} or {flat}, got {tuple(previous_logits.shape)}.")
        previous = previous_logits.reshape(expected).to(logits.dtype)
        with without_autocast(hidden):
            return logits + functional.linear(previous, self._wide(self.previous_weight, previous))


def _reset_linear(weight: Tensor) -> None:
    """Uniform in ``±1/sqrt(inputs)``, as ``torch.nn.Linear`` starts."""
    bound = 1.0 / math.sqrt(weight.shape[-1])
    nn.init.uniform_(weight, -bound, bound)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
