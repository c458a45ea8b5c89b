"""The forward of the experts as an operator, with its reference in plain PyTorch."""

import torch
from torch import Tensor

from moegate.ops.experts.activations import ACTIVATIONS, GATED, apply_activation
from moegate.ops.grouped_mm.reference import grouped_mm_reference
from moegate.ops.library import define, implement, register_fake

__all__ = ["EXPERTS", "experts_reference"]


def experts_reference(
    rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """Two grouped products with the activation between them; what the activation took only if ``keep``."""
    check_sizes(rows_RD, up, down_EDF, offsets_E, activation)
    pre = grouped_mm_reference(rows_RD, up, offsets_E)
    out_RD = grouped_mm_reference(apply_activation(pre, ACTIVATIONS[activation]), down_EDF, offsets_E)
    return out_RD, pre if keep else pre.new_empty(0, up.shape[1])


def _fake(
    rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: int, keep: bool
) -> tuple[Tensor, Tensor]:
    check_sizes(rows_RD, up, down_EDF, offsets_E, activation)
    num_rows = rows_RD.shape[0]
    return rows_RD.new_empty(num_rows, down_EDF.shape[1]), rows_RD.new_empty(num_rows if keep else 0, up.shape[1])


def check_sizes(rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: int) -> None:
    if not 0 <= activation < len(ACTIVATIONS):
        raise RuntimeError(f"activation must be 0 to {len(ACTIVATIONS) - 1}, got {activation}.")
    sides = 2 if ACTIVATIONS[activation] in GATED else 1
    fits = (rows_RD.ndim, up.ndim, down_EDF.ndim, offsets_E.ndim) == (2, 3, 3, 1)
    if not fits or up.shape != (offsets_E.shape[0], sides * down_EDF.shape[2], rows_RD.shape[1]):
        raise RuntimeError(f"rows, up, down and offsets do not fit: {_shapes(rows_RD, up, down_EDF, offsets_E)}.")
    if down_EDF.shape[0] != offsets_E.shape[0] or down_EDF.shape[1] != rows_RD.shape[1]:
        raise RuntimeError(f"rows, up, down and offsets do not fit: {_shapes(rows_RD, up, down_EDF, offsets_E)}.")


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


define(
    "experts(Tensor rows, Tensor up, Tensor down, Tensor offsets, int activation, bool keep) -> (Tensor, Tensor)",
    experts_reference,
)
implement("experts", "moegate.ops.experts.gpu_operator:experts")
register_fake("experts", _fake)
EXPERTS = torch.ops.moegate.experts.default
"""``(rows, up, down, offsets, activation, keep) -> (out, pre)``; ``pre`` is empty without ``keep``."""
