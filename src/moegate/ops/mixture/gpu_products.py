"""What the training and the inference of a layer's second half share on devices that Triton serves."""

from typing import NamedTuple

from torch import Tensor

from moegate.ops.dispatch_plan.gpu_operator import dispatch_plan
from moegate.ops.grouped_mm.gpu_operator import Slots, Tiles, product, tiles_of
from moegate.ops.grouped_mm.gpu_torch import ends_of, torch_grouped_mm, uses_torch


class Rows(NamedTuple):
    """The rows of all slots, sorted by expert: where each comes from and goes to, and how products cut them.

    No slot is left out, so that their number is known without looking: ``T · K``. Behind the last expert's rows lie
    those of empty slots, which nobody reads.
    """

    slot: Tensor
    inverse: Tensor
    offsets: Tensor
    tiles: Tiles

    @classmethod
    def of(cls, slot_R: Tensor, inverse_TK: Tensor, offsets_E: Tensor, like: Tensor) -> "Rows":
        """The rows of a plan, for products of the type of ``like``."""
        return cls(slot_R, inverse_TK, offsets_E, tiles_of(offsets_E, slot_R.shape[0], like.dtype))

    @property
    def slots(self) -> Slots:
        """What a product that gathers takes."""
        return Slots(self.slot, self.slot.shape[0], max(1, self.inverse.shape[1]))


def planned_rows(index_TK: Tensor, num_experts: int, like: Tensor) -> Rows:
    """The rows of all slots of a routing."""
    _, offsets_E, slot_R, inverse_TK = dispatch_plan(index_TK, num_experts, 1, -1, False, False)
    return Rows.of(slot_R, inverse_TK, offsets_E, like)


def product_of_rows(rows_RI: Tensor, weight_EOI: Tensor, rows: Rows) -> Tensor:
    """``weight[e] @ rows[r]`` for the rows of experts; where nothing is gathered, PyTorch's product may be faster."""
    if uses_torch(rows_RI.shape[0], rows.offsets, rows_RI, weight_EOI):
        return torch_grouped_mm(rows_RI, weight_EOI, ends_of(rows.offsets, rows_RI.shape[0]))
    out_RO = rows_RI.new_empty(rows_RI.shape[0], weight_EOI.shape[1])
    product(rows_RI, weight_EOI, rows.tiles, out_RO)
    return out_RO
