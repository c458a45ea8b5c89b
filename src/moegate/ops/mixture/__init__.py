"""Tokens through their chosen experts and back: plan, permute, experts and combine in one call.

Contract: ``out[t] = Σ_k weights[t, k] · expert(index[t, k])(hidden[t])`` over the slots with an expert. On a CPU, with
the bits that ``dispatch_plan``, ``permute``, ``experts`` and ``combine`` give one after the other; what it saves is the
way between them, which is most of what they cost for a single token. It keeps nothing, so it has no gradient of its
own: where one is wanted, the four are called.

On devices that Triton serves, rows are never gathered: the first product reads the tokens where they are, and applies
the activation to its sums. For few slots, such as a step of decoding, nothing is sorted either: two kernels read the
chosen experts once and write inner values and tokens, each a float32 sum that is rounded once. So results differ from
those of the four by the rounding of what lies between. Nothing waits for the host, which is why an index that names no
expert can't be reported: its slot counts as empty. Training has an operator of its own, ``trained_mixture``, which
keeps what went into the activations and nothing else of the size of the rows.
"""

import torch
from torch import Tensor

from moegate.ops.experts.activations import number_of
from moegate.ops.library import served_by_triton
from moegate.ops.mixture.inference import MIXTURE, mixture_reference
from moegate.ops.mixture.training import TRAINED_MIXTURE
from moegate.ops.transforms import is_transformed

__all__ = ["mixture"]

_ELEMENTS = (torch.float32, torch.bfloat16)
_TRITON_ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)


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
        RuntimeError: when an index is below -1 or not below ``E``, on a CPU.

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
    tensors = (hidden_TD, index_TK, weights_TK, up, down_EDF)
    if served_by_triton(hidden_TD.device) and _triton_takes(hidden_TD, index_TK):
        return _in_triton(tensors, number, weight_input)
    run = MIXTURE if _in_one_call(*tensors) else mixture_reference
    out_TD: Tensor = run(*tensors, number, weight_input)
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
    if element not in _ELEMENTS:
        return False
    if up.dtype is not element or down_EDF.dtype is not element or weights_TK.dtype is not torch.float32:
        return False
    if index_TK.dtype is not torch.int64 and index_TK.dtype is not torch.int32:
        return False
    if torch.compiler.is_compiling() or is_transformed():
        return False
    return not _wants_gradient(hidden_TD, weights_TK, up, down_EDF)


def _wants_gradient(hidden_TD: Tensor, weights_TK: Tensor, up: Tensor, down_EDF: Tensor) -> bool:
    wanted = hidden_TD.requires_grad or weights_TK.requires_grad or up.requires_grad or down_EDF.requires_grad
    return wanted and torch.is_grad_enabled()


def _triton_takes(hidden_TD: Tensor, index_TK: Tensor) -> bool:
    is_index = index_TK.dtype is torch.int64 or index_TK.dtype is torch.int32
    return is_index and hidden_TD.dtype in _TRITON_ELEMENTS and not is_transformed()


def _in_triton(tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], activation: int, weight_input: bool) -> Tensor:
    """One operator with a gradient or one without, also while a compiler traces; the four where there is neither."""
    hidden_TD, index_TK, weights_TK, up, down_EDF = tensors
    element, wants_gradient = hidden_TD.dtype, _wants_gradient(hidden_TD, weights_TK, up, down_EDF)
    if wants_gradient and weight_input:
        return mixture_reference(*tensors, activation, weight_input)
    given = hidden_TD, index_TK, weights_TK.to(torch.float32), up.to(element), down_EDF.to(element)
    if wants_gradient:
        return TRAINED_MIXTURE(*given, activation)[0]  # type: ignore[no-any-return]
    if torch.compiler.is_compiling():
        return MIXTURE(*given, activation, weight_input)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():  # PyTorch's own way past a formula that there is none of
        return MIXTURE(*given, activation, weight_input)  # type: ignore[no-any-return]
