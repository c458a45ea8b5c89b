"""Which expert a token selected, as a 0/1 matrix: the base of set comparisons and co-activation."""

from torch import Tensor

from moegate.records import Routing


def selection_map(routing: Routing) -> Tensor:
    """``[T, E]`` bool: True where the token selected the expert (before dropping); masked rows are False.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[2.0, 1.0, 0.0]]), moegate.recipes.mixtral(top_k=2))
        >>> selection_map(routing).tolist()
        [[True, True, False]]
    """
    index_TK = routing.selected_index
    counts_TE = index_TK.new_zeros((routing.num_tokens, routing.num_experts))
    return counts_TE.scatter_add_(1, index_TK.clamp(min=0), (index_TK >= 0).to(index_TK.dtype)) > 0
