"""The reference: a loop over the groups, one matrix product each."""

import torch
from torch import Tensor


def grouped_mm_reference(rows_RI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    out_RO = rows_RI.new_zeros(rows_RI.shape[0], weight_EOI.shape[1])
    start = 0
    for expert, end in enumerate(offsets_E.tolist()):
        if end > start:
            torch.mm(rows_RI[start:end], weight_EOI[expert].mT, out=out_RO[start:end])
        start = end
    return out_RO


def grouped_outer_reference(left_RO: Tensor, right_RI: Tensor, offsets_E: Tensor) -> Tensor:
    out_EOI = left_RO.new_zeros(offsets_E.shape[0], left_RO.shape[1], right_RI.shape[1])
    start = 0
    for expert, end in enumerate(offsets_E.tolist()):
        if end > start:
            torch.mm(left_RO[start:end].mT, right_RI[start:end], out=out_EOI[expert])
        start = end
    return out_EOI
