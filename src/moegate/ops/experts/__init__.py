"""The feed-forward networks of the experts, over rows that are sorted by expert.

Contract: rows ``[R, D]`` are sorted by expert; ``offsets [E]`` int64 holds the *end* of each expert's rows, growing
from 0 to at most ``R``. Rows beyond the last offset belong to no expert: their output is zero. An expert's weights are
read only if it has rows. Sums run in float32, whatever the dtype; what lies between the two products is rounded to the
dtype of the rows once. On the CPU kernels a row's output has the same bits whatever the rows around it and however
many threads run.

float32 and bfloat16 have an operator of their own; every other dtype, and every gradient, is the composition of
``grouped_mm`` and the activation.
"""

import torch
from torch import Tensor

from moegate.ops.experts.activations import ACTIVATIONS, GATED, PLAIN, apply_activation
from moegate.ops.experts.reference import experts_reference
from moegate.ops.grouped_mm import grouped_mm
from moegate.ops.library import define, register_fake

__all__ = ["ACTIVATIONS", "GATED", "PLAIN", "experts"]

_KERNEL_DTYPES = (torch.float32, torch.bfloat16)
_INDEX = {name: index for index, name in enumerate(ACTIVATIONS)}


def _fake(  # noqa: PLR0913 - the schema of the operator
    rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: int, keep: bool
) -> tuple[Tensor, Tensor]:
    num_rows = rows_RD.shape[0]
    return rows_RD.new_empty(num_rows, down_EDF.shape[1]), rows_RD.new_empty(num_rows if keep else 0, up.shape[1])


define(
    "experts(Tensor rows, Tensor up, Tensor down, Tensor offsets, int activation, bool keep) -> (Tensor, Tensor)",
    experts_reference,
)
register_fake("experts", _fake)


def experts(
    rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: str = "swiglu"
) -> Tensor:
    """``down_e(act(up_e row))`` for every row of every expert ``e``; gated, ``down_e(act(gate_e row) · (up_e row))``.

    Args:
        rows_RD: ``[R, D]``, sorted by expert.
        up: ``[E, 2F, D]`` for ``swiglu`` and ``geglu``, gate rows first; ``[E, F, D]`` for ``gelu``, ``relu2``,
            ``relu`` and ``silu``. Converted to the dtype of the rows, as ``down`` is.
        down_EDF: ``[E, D, F]``.
        offsets_E: ``[E]`` int64, non-decreasing: the end of each expert's rows.
        activation: one of the six names.

    Returns:
        ``[R, D]``; rows that belong to no expert are zero.

    Raises:
        ValueError: when shapes or dtypes do not fit, or the activation has no such name.
        RuntimeError: from the kernel, when ``offsets`` decrease or leave the rows.

    Example:
        >>> import torch
        >>> rows, up, down = torch.tensor([[2.0], [3.0]]), torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[10.0]]])
        >>> experts(rows, up, down, torch.tensor([1, 2]), "relu").flatten().tolist()
        [2.0, 30.0]
    """
    _check(rows_RD, up, down_EDF, offsets_E, activation)
    if up.dtype != rows_RD.dtype or down_EDF.dtype != rows_RD.dtype:
        up, down_EDF = up.to(rows_RD.dtype), down_EDF.to(rows_RD.dtype)
    if rows_RD.dtype not in _KERNEL_DTYPES or _needs_gradient(rows_RD, up, down_EDF):
        inner_RF = apply_activation(grouped_mm(rows_RD, up, offsets_E), activation)
        return grouped_mm(inner_RF, down_EDF, offsets_E)
    out_RD: Tensor = torch.ops.moegate.experts(rows_RD, up, down_EDF, offsets_E, _INDEX[activation], False)[0]
    return out_RD


def _needs_gradient(rows_RD: Tensor, up: Tensor, down_EDF: Tensor) -> bool:
    return torch.is_grad_enabled() and (rows_RD.requires_grad or up.requires_grad or down_EDF.requires_grad)


def _check(rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: str) -> None:
    if activation not in _INDEX:
        raise ValueError(f"activation={activation!r} is none: choose {', '.join(ACTIVATIONS)}.")
    if rows_RD.ndim != 2 or up.ndim != 3 or down_EDF.ndim != 3 or offsets_E.ndim != 1:
        raise ValueError(
            f"rows {tuple(rows_RD.shape)}, up {tuple(up.shape)}, down {tuple(down_EDF.shape)} and offsets "
            f"{tuple(offsets_E.shape)} do not fit: expected [R, D], [E, 2F or F, D], [E, D, F] and [E]."
        )
    num_experts, hidden_size, width = down_EDF.shape
    sides = 2 if activation in GATED else 1
    if rows_RD.shape[1] != hidden_size or up.shape != (num_experts, sides * width, hidden_size):
        raise ValueError(
            f"rows {tuple(rows_RD.shape)}, up {tuple(up.shape)} and down {tuple(down_EDF.shape)} do not fit: with "
            f"{activation} and this down, expected rows [R, {hidden_size}] and up "
            f"[{num_experts}, {sides * width}, {hidden_size}]."
        )
    if offsets_E.shape[0] != num_experts or offsets_E.dtype is not torch.int64:
        raise ValueError(
            f"offsets {tuple(offsets_E.shape)} of {offsets_E.dtype} must be one int64 end for each of "
            f"{num_experts} experts."
        )
