"""The weights of experts that are already chosen: gather, score, normalise, scale."""

import torch
from torch import Tensor

from moegate.scoring import SCORES


def gathered_weights(x: Tensor, index_TK: Tensor, score: str, eps: float | None, scale: float) -> Tensor:
    """``[T, K]`` float32 weights of the experts ``index_TK``; float64 stays float64. Differentiable.

    Computed in float64 and rounded once; the scale is a second rounding. ``eps`` None leaves the sum alone. A row with
    a NaN logit has NaN weights.
    """
    slots_TK = index_TK.to(torch.int64)
    if score == "softmax":
        chosen_TK = x.double().softmax(dim=-1).gather(-1, slots_TK)
    else:
        chosen_TK = SCORES[score]().scores(x.gather(-1, slots_TK).double())
    if eps is not None:
        chosen_TK = chosen_TK / (chosen_TK.sum(dim=-1, keepdim=True) + eps)
    spoiled_T1 = x.detach().isnan().any(dim=-1, keepdim=True)
    weights_TK = chosen_TK.masked_fill(spoiled_T1, torch.nan)
    return weights_TK.to(torch.float64 if x.dtype == torch.float64 else torch.float32) * scale
