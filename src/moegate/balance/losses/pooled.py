"""The load-balancing loss of all layers thrown together, as transformers computes it: for comparison."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moegate.balance.losses.switch import balance_product
from moegate.records import Routing


def pooled_load_balance(routings: Sequence[Routing]) -> Tensor:
    """The load-balancing loss of several layers as if they were one: prefer ``load_balance`` per layer.

    ``E · Σ_i f_i · P_i`` with counts and mean probabilities over the tokens of all layers together.
    Imbalances of different layers cancel: if every layer collapses onto an expert of its own, the pooled loss
    still reads 1.0. ``transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func`` is this value
    times ``K`` (it divides the counts by tokens, not by assignments).

    Raises:
        ValueError: no routings, or routings with different numbers of experts.

    Example:
        >>> import torch, moegate
        >>> left = moegate.route(torch.tensor([[9.0, 0.0]]), moegate.recipes.switch())
        >>> right = moegate.route(torch.tensor([[0.0, 9.0]]), moegate.recipes.switch())
        >>> round(pooled_load_balance([left, right]).item(), 2)  # each layer alone reads 2.0
        1.0
    """
    if not routings:
        raise ValueError("routings is empty: pass the routing of at least one layer.")
    experts = {routing.num_experts for routing in routings}
    if len(experts) > 1:
        raise ValueError(
            f"the layers have different numbers of experts {sorted(experts)}, which can't be pooled: call "
            "load_balance on each layer and add the results."
        )
    counts_E = torch.stack([routing.selected_load for routing in routings]).sum(dim=0)
    total_E = torch.stack([routing.probabilities.sum(dim=0) for routing in routings]).sum(dim=0)
    real_tokens = torch.stack([routing.real_tokens for routing in routings]).sum()
    return balance_product(counts_E, total_E / real_tokens.clamp(min=1))
