"""The peer: top-k routing and a mixture of SwiGLU experts as one writes them in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

import moegate


def route(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Softmax, `torch.topk`, weights renormalised: `(index, weights)`."""
    weights_TK, index_TK = torch.topk(logits_TE.softmax(dim=-1), top_k, dim=-1)
    return index_TK, weights_TK / weights_TK.sum(dim=-1, keepdim=True)


def mixture(hidden_TD: Tensor, moe: moegate.MoE, top_k: int) -> Tensor:
    """One matrix product an expert over the tokens it got, as in the eager form of Hugging Face models."""
    index_TK, weights_TK = route(linear(hidden_TD, moe.gate.weight).float(), top_k)
    out_TD = torch.zeros_like(hidden_TD)
    for expert in index_TK.unique().tolist():
        token_R, slot_R = torch.where(index_TK == expert)
        gate_RF, up_RF = linear(hidden_TD[token_R], moe.experts.gate_up_proj[expert]).chunk(2, dim=-1)
        rows_RD = linear(silu(gate_RF) * up_RF, moe.experts.down_proj[expert])
        out_TD.index_add_(0, token_R, rows_RD * weights_TK[token_R, slot_R, None].to(rows_RD.dtype))
    return out_TD
