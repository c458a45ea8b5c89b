"""Arguments for the operators of a layer's second half, and their oracle: token by token, slot by slot, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from moegate.ops.experts import GATED

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": functional.silu,
    "geglu": functional.gelu,
    "gelu": functional.gelu,
    "relu2": lambda x: x.relu().square(),
    "relu": functional.relu,
    "silu": functional.silu,
}
DTYPES = (torch.float32, torch.bfloat16)

Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def given(
    tokens: int = 7, activation: str = "swiglu", dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = (5, 3)
) -> Given:
    """Hidden states, experts, weights and both projections; a fifth of the slots are empty, their weights NaN."""
    num_experts, top_k = sizes
    sides = 2 if activation in GATED else 1
    index_TK = torch.rand(tokens, num_experts).argsort(dim=1)[:, :top_k]
    index_TK = index_TK.masked_fill(torch.rand(index_TK.shape) < 0.2, -1)
    weights_TK = torch.rand(index_TK.shape).masked_fill(index_TK < 0, float("nan"))
    up, down_EDF = torch.randn(num_experts, sides * 11, 13), torch.randn(num_experts, 13, 11)
    return torch.randn(tokens, 13).to(dtype), index_TK, weights_TK, up.to(dtype), down_EDF.to(dtype)


def oracle(inputs: Given, activation: str, weight_input: bool = False) -> Tensor:
    """Expert by expert and token by token, in float64; differentiable."""
    hidden_TD, index_TK, weights_TK, up, down_EDF = (
        value.double() if value.is_floating_point() else value for value in inputs
    )
    tokens = []
    for token, row in enumerate(index_TK.tolist()):
        out_D = torch.zeros_like(hidden_TD[token])
        for slot, expert in enumerate(row):
            if expert < 0:
                continue
            weight = weights_TK[token, slot]
            inner = up[expert] @ (hidden_TD[token] * (weight if weight_input else 1.0))
            gate, factor = inner.chunk(2) if activation in GATED else (inner, torch.ones(()))
            y_D = down_EDF[expert] @ (PLAIN[activation](gate) * factor)
            out_D = out_D + y_D * (1.0 if weight_input else weight)
        tokens.append(out_D)
    return torch.stack(tokens) if tokens else torch.zeros(hidden_TD.shape, dtype=torch.float64)
