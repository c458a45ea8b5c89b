"""How sure the router is: margins, entropies and the size of its logits."""

import torch
from torch import Tensor

from moegate.probability import entropy
from moegate.records import Routing


def token_margin(routing: Routing) -> Tensor:
    """The relative gap at the edge of the selection, one float64 per real token that has one.

    ``(s_(k) - s_(k+1)) / |s_(k)|`` with ``s`` the token's row of ``routing.ranking`` in descending order and
    ``k`` the number of experts it selected; a gap of 0 reads 0. It says how easily another rounding (bf16,
    another kernel) picks another expert. Tokens that select none or all of the experts have no edge and are
    left out. The edge is that of the whole row: group limits are not seen.

    Example:
        >>> import torch, moegate
        >>> token_margin(moegate.route(torch.tensor([[4.0, 3.0, 0.0]]), moegate.recipes.gpt_oss(top_k=1)))
        tensor([0.2500], dtype=torch.float64)

    Source: Megatron-LM's top-k boundary margin.
    """
    selected_T = (routing.selected_index >= 0).sum(dim=-1)
    has_edge_T = (selected_T > 0) & (selected_T < routing.num_experts)
    ordered_NE = routing.ranking[has_edge_T].detach().to(torch.float64).sort(dim=-1, descending=True).values
    edge_N1 = selected_T[has_edge_T][:, None]
    inner_N = ordered_NE.gather(1, edge_N1 - 1).squeeze(1)
    gap_N = inner_N - ordered_NE.gather(1, edge_N1).squeeze(1)
    return torch.where(gap_N == 0, 0.0, gap_N / inner_N.abs())


def margin(routing: Routing) -> float:
    """The median of ``token_margin``; NaN if no token has an edge.

    The median, because a ranking score near 0 makes the relative gap of its token arbitrarily large.

    Example:
        >>> import torch, moegate
        >>> margin(moegate.route(torch.tensor([[4.0, 3.0, 0.0]]), moegate.recipes.gpt_oss(top_k=1)))
        0.25
    """
    margin_N = token_margin(routing)
    return margin_N.median().item() if margin_N.numel() else float("nan")


def router_z(routing: Routing) -> float:
    """The mean over the real tokens of ``logsumexp(logits)²``, as in the z-loss; NaN without a real token.

    Example:
        >>> import torch, moegate
        >>> round(router_z(moegate.route(torch.zeros(5, 4), moegate.recipes.switch())), 4)
        1.9218
    """
    return torch.logsumexp(_real(routing, routing.logits), dim=-1).square().mean().item()


def token_entropy(routing: Routing) -> float:
    """The mean over the real tokens of the entropy of ``routing.probabilities``, in nats; NaN without any.

    Example:
        >>> import torch, moegate
        >>> round(token_entropy(moegate.route(torch.zeros(5, 4), moegate.recipes.switch())), 4)
        1.3863
    """
    return float(entropy(_real(routing, routing.probabilities)).mean())


def _real(routing: Routing, values_TE: Tensor) -> Tensor:
    """The rows of the real tokens, float64."""
    values_TE = values_TE.detach().to(torch.float64)
    return values_TE if routing.token_mask is None else values_TE[routing.token_mask]
