"""The load-balancing loss of Switch and GShard, right for any number of experts per token."""

import torch
from torch import Tensor

from moegate.records import Routing, count_assignments


def load_balance(routing: Routing, *, load: Tensor | None = None, dropped: bool = False) -> Tensor:
    """Push the router's probability away from the experts that are busy.

    ``E · Σ_i f_i · P_i`` with ``f_i = n_i / Σ_j n_j``, the share of the assignments that expert ``i`` got (a
    constant), and ``P_i``, the mean over the real tokens of ``routing.probabilities`` (differentiable).

    Because ``f`` is divided by the assignments that were made, and not by the tokens, perfect balance reads
    1.0 for any ``K`` and for routers with a different ``K`` per token; all tokens on the same ``K`` experts
    read ``E / K``.

    Args:
        routing: one layer's routing.
        load: ``[E]`` counts to use instead of the routing's own, such as those of the global batch.
        dropped: count what was left after capacity dropped assignments. An overloaded expert then looks as
            busy as its capacity at most, and the loss pushes less than it should; so the default is to count
            before.

    Raises:
        ValueError: ``load`` does not have one count per expert.

    Example:
        >>> import torch, moegate
        >>> logits = torch.tensor([[4.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0]])
        >>> routing = moegate.route(logits, moegate.recipes.switch(), token_mask=torch.tensor([True, True]))
        >>> round(load_balance(routing).item(), 3)  # 4 experts, and 0.948 of the probability on one
        3.792

    Source: Fedus et al., Switch Transformers, arXiv 2101.03961, equations 4 to 6.
    """
    counts_E = _counts(routing, load, dropped)
    return balance_product(counts_E, mean_probability(routing))


def first_choice_load_balance(routing: Routing) -> Tensor:
    """The load-balancing loss that counts each token's first choice only.

    ``E · Σ_i f_i · P_i`` with ``f_i`` the share of the tokens that rank expert ``i`` first among the experts they
    selected (before dropping). Perfect balance reads 1.0. The further choices are not seen: tokens whose second
    choice is always the same expert look balanced.

    Example:
        >>> import torch, moegate
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        >>> routing = moegate.route(logits, moegate.recipes.mixtral(top_k=2))
        >>> load_balance(routing) < first_choice_load_balance(routing)
        tensor(True)

    Source: Lepikhin et al., GShard, arXiv 2006.16668, algorithm 1.
    """
    index_TK = routing.selected_index
    # Not simply slot 0: the slots of expert choice and dense routing are not in order of preference.
    ranking_TK = routing.ranking.gather(1, index_TK.clamp(min=0)).masked_fill(index_TK < 0, float("-inf"))
    first_T1 = index_TK.gather(1, ranking_TK.argmax(dim=1, keepdim=True))
    return balance_product(count_assignments(first_T1, routing.num_experts), mean_probability(routing))


def mean_probability(routing: Routing) -> Tensor:
    """``[E]``: the mean of ``routing.probabilities`` over the real tokens; zeros, with a graph, for none.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.zeros(3, 2), moegate.recipes.switch())
        >>> mean_probability(routing)
        tensor([0.5000, 0.5000])
    """
    return routing.probabilities.sum(dim=0) / routing.real_tokens.clamp(min=1)


def balance_product(counts_E: Tensor, mean_E: Tensor) -> Tensor:
    """``E · Σ_i f_i · P_i`` from counts (a constant) and mean probabilities; 0 where nothing was counted.

    Example:
        >>> balance_product(torch.tensor([3, 1]), torch.tensor([0.5, 0.5]))
        tensor(1.)
    """
    counts_E = counts_E.detach().to(mean_E.dtype)
    share_E = counts_E / torch.where(counts_E.sum() > 0, counts_E.sum(), 1.0)
    return mean_E.shape[0] * (share_E * mean_E).sum()


def _counts(routing: Routing, load: Tensor | None, dropped: bool) -> Tensor:
    if load is None:
        return routing.load if dropped else routing.selected_load
    if load.shape != (routing.num_experts,):
        raise ValueError(
            f"load has shape {tuple(load.shape)}, but the routing has {routing.num_experts} experts: pass "
            f"one count per expert, shape ({routing.num_experts},)."
        )
    return load
