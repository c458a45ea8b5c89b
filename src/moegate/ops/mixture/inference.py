"""A layer's second half without gradients, as one operator."""

import torch
from torch import Tensor

from moegate.ops.combine import combine
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.experts import ACTIVATIONS, experts
from moegate.ops.library import define, implement, register_fake
from moegate.ops.permute import permute

__all__ = ["MIXTURE", "mixture_reference"]


def mixture_reference(  # noqa: PLR0917 - what a layer's second half takes
    hidden_TD: Tensor,
    index_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    activation: int,
    weight_input: bool,
) -> Tensor:
    """The four operators, one after the other."""
    if not 0 <= activation < len(ACTIVATIONS):
        raise RuntimeError(f"activation must be 0 to {len(ACTIVATIONS) - 1}, got {activation}.")
    places = dispatch_plan(index_TK, up.shape[0])
    rows_RD = permute(hidden_TD, places.slot, places.inverse, weights_TK if weight_input else None)
    out_RD = experts(rows_RD, up, down_EDF, places.offsets, ACTIVATIONS[activation])
    return combine(out_RD, places.slot, places.inverse, None if weight_input else weights_TK)


def _fake(hidden_TD: Tensor, *_: object) -> Tensor:
    return torch.empty_like(hidden_TD, memory_format=torch.contiguous_format)


define(
    "mixture(Tensor hidden, Tensor index, Tensor weights, Tensor up, Tensor down, int activation, bool weight_input)"
    " -> Tensor",
    mixture_reference,
)
implement("mixture", "moegate.ops.mixture.gpu_operator:mixture")
register_fake("mixture", _fake)
MIXTURE = torch.ops.moegate.mixture.default
