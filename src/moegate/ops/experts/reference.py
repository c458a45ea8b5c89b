"""The reference: two grouped products with the activation between them."""

from torch import Tensor

from moegate.ops.experts.activations import ACTIVATIONS, apply_activation
from moegate.ops.grouped_mm.reference import grouped_mm_reference


def experts_reference(  # noqa: PLR0913 - the schema of the operator
    rows_RD: Tensor, up: Tensor, down_EDF: Tensor, offsets_E: Tensor, activation: int, keep: bool
) -> tuple[Tensor, Tensor]:
    pre = grouped_mm_reference(rows_RD, up, offsets_E)
    out_RD = grouped_mm_reference(apply_activation(pre, ACTIVATIONS[activation]), down_EDF, offsets_E)
    return out_RD, pre if keep else pre.new_empty(0, up.shape[1])
