"""The feed-forward networks of the experts, over rows that are sorted by expert.

Contract: rows ``[R, D]`` are sorted by expert; ``offsets [E]`` int64 holds the *end* of each expert's rows, growing
from 0 to at most ``R``. Rows beyond the last offset belong to no expert: their output is zero and no gradient comes
from them. The weights of an expert without rows are not read. In float32 and bfloat16 sums run in float32, and what
lies between the two products is rounded to the type of the rows once; other types, ``torch.func`` and forward
derivatives take the composition of ``grouped_mm`` and the activation. On the CPU kernels a row's output has the same
bits whatever the rows around it and however many threads run.
"""

import torch
from torch import Tensor

from moegate.ops.experts.activations import ACTIVATIONS, GATED, PLAIN, apply_activation, number_of
from moegate.ops.experts.forward import EXPERTS
from moegate.ops.experts.gradient import experts_adding_gradients
from moegate.ops.grouped_mm import grouped_mm
from moegate.ops.transforms import is_transformed

__all__ = ["ACTIVATIONS", "GATED", "PLAIN", "experts", "experts_adding_gradients"]

_OPERATOR_DTYPES = (torch.float32, torch.bfloat16)


def experts(rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: str = "swiglu") -> Tensor:
    """``down_e(act(up_e row))`` for every row of every expert ``e``; gated, ``down_e(act(gate_e row) · (up_e row))``.

    Args:
        rows_RD: ``[R, D]``, sorted by expert.
        up: ``[E, 2F, D]`` for ``swiglu`` and ``geglu``, gate rows first; ``[E, F, D]`` for ``gelu``, ``relu2``,
            ``relu`` and ``silu``. Converted to the type of the rows, as ``down_EDF`` is.
        down_EDF: ``[E, D, F]``.
        offsets_E: ``[E]`` int64, non-decreasing: the end of each expert's rows.
        activation: one of the six names.

    Returns:
        ``[R, D]``; rows that belong to no expert are zero.

    Raises:
        ValueError: when shapes or types do not fit, or the activation has no such name.
        RuntimeError: when ``offsets`` decrease or leave the rows.

    Example:
        >>> rows, up, down = torch.tensor([[2.0], [3.0]]), torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[10.0]]])
        >>> experts(rows, up, down, torch.tensor([1, 2]), "relu").flatten().tolist()
        [2.0, 30.0]
    """
    index = number_of(activation)
    _check(rows_RD, up, down_EDF, offsets_E, activation)
    if up.dtype is not rows_RD.dtype or down_EDF.dtype is not rows_RD.dtype:
        up, down_EDF = up.to(rows_RD.dtype), down_EDF.to(rows_RD.dtype)
    if rows_RD.dtype not in _OPERATOR_DTYPES or is_transformed():
        inner_RF = apply_activation(grouped_mm(rows_RD, up, offsets_E), activation)
        return grouped_mm(inner_RF, down_EDF, offsets_E)
    wants_gradient = torch.is_grad_enabled() and (rows_RD.requires_grad or up.requires_grad or down_EDF.requires_grad)
    if wants_gradient or torch.compiler.is_compiling():
        return EXPERTS(rows_RD, up, down_EDF, offsets_E, index, wants_gradient)[0]  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():  # PyTorch's own way past a formula that nobody asks for
        return EXPERTS(rows_RD, up, down_EDF, offsets_E, index, False)[0]  # type: ignore[no-any-return]


def _check(rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: str) -> None:
    if (rows_RD.ndim, up.ndim, down_EDF.ndim, offsets_E.ndim) != (2, 3, 3, 1):
        raise ValueError(
            f"rows {tuple(rows_RD.shape)}, up {tuple(up.shape)}, down {tuple(down_EDF.shape)} and offsets "
            f"{tuple(offsets_E.shape)} do not fit: expected [R, D], [E, 2F or F, D], [E, D, F] and [E]."
        )
    num_experts, hidden_size, width = down_EDF.shape
    up_width = 2 * width if activation in GATED else width
    if rows_RD.shape[1] != hidden_size or up.shape != (num_experts, up_width, hidden_size):
        raise ValueError(
            f"rows {tuple(rows_RD.shape)}, up {tuple(up.shape)} and down {tuple(down_EDF.shape)} do not fit: for "
            f"{activation} and this down, rows must be [R, {hidden_size}] and up "
            f"[{num_experts}, {up_width}, {hidden_size}]."
        )
    if offsets_E.shape[0] != num_experts or offsets_E.dtype is not torch.int64:
        raise ValueError(
            f"offsets {tuple(offsets_E.shape)} of {offsets_E.dtype} must be one int64 end for each of "
            f"{num_experts} experts."
        )
