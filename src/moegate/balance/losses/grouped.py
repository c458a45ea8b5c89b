"""The load-balancing loss of groups of experts, such as those that share a device."""

from torch import Tensor

from moegate.balance.losses.switch import balance_product, mean_probability
from moegate.records import Routing


def group_load_balance(routing: Routing, num_groups: int) -> Tensor:
    """Balance groups of neighbouring experts (devices, nodes) and leave the experts within a group alone.

    ``G · Σ_g F_g · P_g``, where ``F_g`` and ``P_g`` are the sums over group ``g`` of the experts' shares of
    the assignments (before dropping) and mean probabilities. Perfect balance between groups reads 1.0.

    Raises:
        ValueError: the experts do not divide into ``num_groups`` equal groups.

    Example:
        >>> import torch, moegate
        >>> logits = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])  # one expert of each group
        >>> routing = moegate.route(logits, moegate.recipes.switch())
        >>> round(group_load_balance(routing, num_groups=2).item(), 2)
        1.0

    Source: DeepSeek-V2, arXiv 2405.04434, the device-level balance loss.
    """
    if num_groups < 1 or routing.num_experts % num_groups:
        raise ValueError(
            f"num_groups={num_groups} does not divide the {routing.num_experts} experts into equal groups: "
            "pass a divisor of the number of experts."
        )
    counts_G = routing.selected_load.reshape(num_groups, -1).sum(dim=1)
    return balance_product(counts_G, mean_probability(routing).reshape(num_groups, -1).sum(dim=1))
