"""The router z-loss: keep the logits small."""

import torch
from torch import Tensor

from moegate.records import Routing


def router_z(routing: Routing) -> Tensor:
    """The mean over the real tokens of ``logsumexp(logits)²``: large logits lose precision and saturate.

    Logits of size 0 read ``(log E)²``. It reads the clean logits, before noise.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.zeros(5, 4), moegate.recipes.switch())
        >>> round(router_z(routing).item(), 4)
        1.9218

    Source: Zoph et al., ST-MoE, arXiv 2202.08906, equation 5.
    """
    logits_TE = routing.logits
    if routing.token_mask is None:
        return torch.logsumexp(logits_TE, dim=-1).square().sum() / max(routing.num_tokens, 1)
    # Masked before the arithmetic: a NaN or inf in a padding row must not reach a gradient.
    logits_TE = logits_TE.masked_fill(~routing.token_mask[:, None], 0.0)
    square_T = torch.logsumexp(logits_TE, dim=-1).square().masked_fill(~routing.token_mask, 0.0)
    return square_T.sum() / routing.real_tokens.clamp(min=1)
