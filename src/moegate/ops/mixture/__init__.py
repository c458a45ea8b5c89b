"""Tokens through their chosen experts and back: plan, permute, experts and combine in one call.

Contract: ``out[t] = Σ_k weights[t, k] · expert(index[t, k])(hidden[t])`` over the slots with an expert, with the bits
that ``dispatch_plan``, ``permute``, ``experts`` and ``combine`` give one after the other. What it saves is the way
between them, which is most of what they cost for a single token. It keeps nothing, so it has no gradient of its own:
where one is wanted, the four are called.
"""

import torch
from torch import Tensor

from moegate.ops.combine import combine
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.experts import ACTIVATIONS, experts
from moegate.ops.experts.activations import number_of
from moegate.ops.library import define, register_fake
from moegate.ops.permute import permute
from moegate.ops.transforms import is_transformed

__all__ = ["mixture"]


def mixture_reference(  # noqa: PLR0917 - what a layer's second half takes
    hidden_TD: Tensor,
    index_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    activation: int,
    weight_input: bool,
) -> Tensor:
    """The four operators, one after the other."""
    if not 0 <= activation < len(ACTIVATIONS):
        raise RuntimeError(f"activation must be 0 to {len(ACTIVATIONS) - 1}, got {activation}.")
    places = dispatch_plan(index_TK, up.shape[0])
    rows_RD = permute(hidden_TD, places.slot, places.inverse, weights_TK if weight_input else None)
    out_RD = experts(rows_RD, up, down_EDF, places.offsets, ACTIVATIONS[activation])
    return combine(out_RD, places.slot, places.inverse, None if weight_input else weights_TK)


def _fake(hidden_TD: Tensor, *_: object) -> Tensor:
    return torch.empty_like(hidden_TD, memory_format=torch.contiguous_format)


define(
    "mixture(Tensor hidden, Tensor index, Tensor weights, Tensor up, Tensor down, int activation, bool weight_input)"
    " -> Tensor",
    mixture_reference,
)
register_fake("mixture", _fake)
_mixture = torch.ops.moegate.mixture.default


def mixture(
    hidden_TD: Tensor,
    index_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    activation: str = "swiglu",
    *,
    weight_input: bool = False,
) -> Tensor:
    """The tokens' outputs from the experts that they were sent to.

    Args:
        hidden_TD: ``[T, D]``.
        index_TK: ``[T, K]`` int32 or int64, the experts of each token; -1 is an empty slot.
        weights_TK: ``[T, K]``, the weight of each slot; of an empty slot it does not matter.
        up: ``[E, 2F, D]`` for ``swiglu`` and ``geglu``, gate rows first; else ``[E, F, D]``.
        down_EDF: ``[E, D, F]``.
        activation: ``swiglu``, ``geglu``, ``gelu``, ``relu2``, ``relu`` or ``silu``.
        weight_input: multiply the experts' input by the weights, instead of their output (Llama 4).

    Returns:
        ``[T, D]`` in the type of the hidden states.

    Raises:
        ValueError: when shapes do not fit, or the activation has no such name.
        TypeError: when the indices are not int32 or int64.
        RuntimeError: when an index is below -1 or not below ``E``.

    Example:
        >>> up, down = torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[10.0]]])
        >>> index, weights = torch.tensor([[1, 0], [0, -1]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
        >>> mixture(torch.tensor([[2.0], [3.0]]), index, weights, up, down, "relu").flatten().tolist()
        [11.0, 3.0]

    Source:
        One call for a whole mixture is how servers run experts: ``fused_moe`` in vLLM and SGLang.
    """
    number = number_of(activation)
    _check(hidden_TD, index_TK, weights_TK, (up, down_EDF))
    run = _mixture if _in_one_call(hidden_TD, index_TK, weights_TK, up, down_EDF) else mixture_reference
    out_TD: Tensor = run(hidden_TD, index_TK, weights_TK, up, down_EDF, number, weight_input)
    return out_TD


def _check(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, projections: tuple[Tensor, Tensor]) -> None:
    if not all(isinstance(value, Tensor) for value in (hidden_TD, index_TK, weights_TK, *projections)):
        raise TypeError("hidden, index, weights, up and down must be tensors.")
    shape = index_TK.shape
    if hidden_TD.ndim != 2 or len(shape) != 2 or shape[0] != hidden_TD.shape[0] or weights_TK.shape != shape:
        raise ValueError(
            f"hidden {tuple(hidden_TD.shape)}, index {tuple(shape)} and weights {tuple(weights_TK.shape)} do not fit: "
            "expected [T, D], [T, K] and [T, K]."
        )
    up, down_EDF = projections
    if up.ndim != 3 or down_EDF.ndim != 3 or up.shape[2] != hidden_TD.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden_TD.shape)}, up {tuple(up.shape)} and down {tuple(down_EDF.shape)} do not fit: "
            "expected [T, D], [E, 2F or F, D] and [E, D, F]."
        )


def _in_one_call(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, up: Tensor, down_EDF: Tensor) -> bool:
    """Whether the operator gives what the four would: the types it takes, and nobody who looks for a gradient."""
    element = hidden_TD.dtype
    if element is not torch.float32 and element is not torch.bfloat16:
        return False
    if up.dtype is not element or down_EDF.dtype is not element or weights_TK.dtype is not torch.float32:
        return False
    if index_TK.dtype is not torch.int64 and index_TK.dtype is not torch.int32:
        return False
    if torch.compiler.is_compiling() or is_transformed():
        return False
    wanted = hidden_TD.requires_grad or weights_TK.requires_grad or up.requires_grad or down_EDF.requires_grad
    return not (wanted and torch.is_grad_enabled())
