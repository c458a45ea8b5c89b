"""The experts as models write them in plain PyTorch: a loop over the experts, and the grouped matrix product."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear, silu

from moegate.bench.peers.pytorch_plan import permute, plan, plan_without_waiting

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]


def loop(gate_up: Tensor, down: Tensor) -> Experts:
    """One pair of matrix products for each expert that got a token."""

    def run(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        out_TD = torch.zeros_like(hidden_TD)
        for expert in index_TK.unique().tolist():
            token_R, slot_R = torch.where(index_TK == expert)
            gate_RF, up_RF = linear(hidden_TD[token_R], gate_up[expert]).chunk(2, dim=-1)
            rows_RD = linear(silu(gate_RF) * up_RF, down[expert])
            out_TD = out_TD.index_add(0, token_R, (rows_RD * weights_TK[token_R, slot_R, None]).to(rows_RD.dtype))
        return out_TD

    return run


def grouped(gate_up: Tensor, down: Tensor) -> Experts:
    """Sorted rows through ``torch.nn.functional.grouped_mm``, brought back and summed.

    On an accelerator nothing in it waits, so that a graph can hold it.
    """
    sort = plan if gate_up.device.type == "cpu" else plan_without_waiting

    def run(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        slots = sort(index_TK, gate_up.shape[0])
        offsets_E = slots.offsets.int()
        rows_RD = permute(hidden_TD, slots.slot, index_TK.shape[1])
        gate_RF, up_RF = grouped_mm(rows_RD, gate_up.mT, offs=offsets_E).chunk(2, dim=-1)
        rows_RD = grouped_mm(silu(gate_RF) * up_RF, down.mT, offs=offsets_E)
        slots_TKD = rows_RD[slots.inverse].view(*index_TK.shape, -1)
        return (slots_TKD * weights_TK[..., None]).sum(dim=1).to(hidden_TD.dtype)

    return run
