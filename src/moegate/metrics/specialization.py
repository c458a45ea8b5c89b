"""What experts are used for: together with which others, and for which domains."""

import torch
from torch import Tensor

from moegate.metrics.membership import selection_map
from moegate.probability import entropy
from moegate.records import Routing


def coactivation(routing: Routing) -> Tensor:
    """``[E, E]`` int64, symmetric: tokens that select both experts; on the diagonal, tokens that select it.

    Example:
        >>> import torch, moegate
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
        >>> coactivation(moegate.route(logits, moegate.recipes.mixtral(top_k=2))).tolist()
        [[2, 1, 1], [1, 1, 0], [1, 0, 1]]
    """
    # Exact in float64 up to 2^53 tokens, and integer matrix products have no fast path.
    map_TE = selection_map(routing).to(torch.float64)
    return (map_TE.T @ map_TE).to(torch.int64)


def coactivation_lift(routing: Routing) -> Tensor:
    """``[E, E]`` float64: ``P(i, j) / (P(i) · P(j))`` over the real tokens.

    1 where two experts are selected independently, more where they go together, 0 where never; NaN for an
    expert that is never selected. The diagonal is ``1 / P(i)``. A fixed ``K`` makes experts compete, so under
    even random routing a pair reads ``E (K - 1) / (K (E - 1))``, somewhat below 1.

    Example:
        >>> import torch, moegate
        >>> logits = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
        >>> coactivation_lift(moegate.route(logits, moegate.recipes.mixtral(top_k=2)))[0].tolist()
        [2.0, 2.0, 0.0, 0.0]
    """
    pairs_EE = coactivation(routing).to(torch.float64)
    single_E = pairs_EE.diagonal()
    return pairs_EE * routing.real_tokens / (single_E[:, None] * single_E[None, :])


def domain_load(routing: Routing, domain_ids: Tensor, num_domains: int) -> Tensor:
    """``[num_domains, E]`` int64: assignments by the domain of the token (before dropping).

    Add the tables of several batches up before taking ``domain_nmi`` of them.

    Args:
        routing: one layer's routing.
        domain_ids: one integer from 0 to ``num_domains - 1`` per token, shaped ``[T]`` or as the leading
            shape of the logits. The ids of masked tokens don't matter.
        num_domains: the number of domains.

    Raises:
        TypeError: the ids are not integers.
        ValueError: the ids have another shape, or lie out of range.

    Example:
        >>> import torch, moegate
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> routing = moegate.route(logits, moegate.recipes.switch())
        >>> domain_load(routing, torch.tensor([0, 1, 1]), num_domains=2).tolist()
        [[1, 0], [0, 2]]
    """
    domain_T = _domains(routing, domain_ids, num_domains)
    index_TK = routing.selected_index
    cell_TK = (domain_T[:, None] * routing.num_experts + index_TK)[index_TK >= 0]
    counts_N = torch.bincount(cell_TK, minlength=num_domains * routing.num_experts)
    return counts_N.reshape(num_domains, routing.num_experts)


def domain_mutual_information(domain_load: Tensor) -> float:
    """The mutual information of domain and expert, in nats, from a ``domain_load`` table; NaN if it is empty.

    ``Σ_de p_de · log(p_de / (p_d · p_e))``: 0 if every domain uses the experts alike. Few tokens read too
    high: by about ``(domains - 1)(E - 1) / (2 · assignments)``.

    Example:
        >>> round(domain_mutual_information(torch.tensor([[5, 0], [0, 5]])), 4)
        0.6931
    """
    share_NE = _shares(domain_load)
    independent_NE = share_NE.sum(dim=1, keepdim=True) * share_NE.sum(dim=0, keepdim=True)
    ratio_NE = torch.where(share_NE > 0, share_NE / independent_NE, share_NE)
    return float(torch.xlogy(share_NE, ratio_NE).sum())


def domain_nmi(domain_load: Tensor) -> float:
    """Mutual information of domain and expert over the mean of their entropies: 0 (none) to 1 (all).

    Two constants (one domain, and one expert in use) read 1.0, as in scikit-learn, whose arithmetic
    normalisation this is. NaN if the table is empty.

    Example:
        >>> round(domain_nmi(torch.tensor([[5, 0], [0, 5]])), 4)
        1.0
    """
    share_NE = _shares(domain_load)
    domain_entropy = float(entropy(share_NE.sum(dim=1)))
    expert_entropy = float(entropy(share_NE.sum(dim=0)))
    if domain_entropy == expert_entropy == 0:
        return 1.0
    return domain_mutual_information(domain_load) / ((domain_entropy + expert_entropy) / 2)


def _domains(routing: Routing, domain_ids: Tensor, num_domains: int) -> Tensor:
    """``[T]`` int64, checked, and 0 for masked tokens."""
    if domain_ids.is_floating_point() or domain_ids.dtype == torch.bool:
        raise TypeError(f"domain_ids is {domain_ids.dtype}: pass one integer per token, such as torch.int64.")
    if tuple(domain_ids.shape) not in {(routing.num_tokens,), routing.batch_shape}:
        raise ValueError(
            f"domain_ids has shape {tuple(domain_ids.shape)}, but there are {routing.num_tokens} tokens: "
            f"pass shape ({routing.num_tokens},) or that of the routed batch, {routing.batch_shape}."
        )
    domain_T = domain_ids.reshape(-1).to(routing.selected_index)
    if routing.token_mask is not None:
        domain_T = domain_T.masked_fill(~routing.token_mask, 0)
    if domain_T.numel() and not 0 <= domain_T.min() <= domain_T.max() < num_domains:
        raise ValueError(
            f"domain_ids go from {int(domain_T.min())} to {int(domain_T.max())}, but "
            f"num_domains={num_domains} allows 0 to {num_domains - 1}."
        )
    return domain_T


def _shares(domain_load: Tensor) -> Tensor:
    """The table as float64 shares of its sum."""
    if domain_load.dim() != 2:
        raise ValueError(
            f"the table has shape {tuple(domain_load.shape)}: pass the [num_domains, num_experts] table of "
            "domain_load()."
        )
    table_NE = domain_load.to(torch.float64)
    return table_NE / table_NE.sum()
