"""The load-balancing loss with the counts of the global batch: all ranks, all micro-batches."""

import torch
import torch.distributed as dist
from torch import Tensor

from moegate.balance.losses.switch import load_balance
from moegate.balance.reduction import sum_over_ranks
from moegate.records import Routing


class LoadAccumulator:
    """Adds up the counts of one layer over the micro-batches of an optimizer step.

    The counts are int64 and are divided by their own sum, so that every denominator belongs to its numerator
    (accumulated counts over the *current* micro-batch's tokens is a known bug: Megatron-LM #7213). A
    recomputed forward is counted once as long as ``add`` gets the routing that the layer returned.

    Early micro-batches see the counts made so far, the last one sees them all: forms that are exact for every
    micro-batch need a first pass that only routes (then pass ``load=`` to ``load_balance``).

    Example:
        >>> import torch, moegate
        >>> accumulator = LoadAccumulator(num_experts=2)
        >>> for logits in (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])):
        ...     routing = moegate.route(logits, moegate.recipes.switch())
        ...     loss = load_balance(routing, load=accumulator.add(routing))
        >>> accumulator.load.tolist(), round(loss.item(), 3)
        ([1, 1], 1.0)
        >>> accumulator.reset()  # after the optimizer step
    """

    def __init__(self, num_experts: int) -> None:
        if num_experts < 1:
            raise ValueError(f"num_experts={num_experts}: an accumulator needs at least one expert to count.")
        self.load = torch.zeros(num_experts, dtype=torch.int64)
        """``[E]`` int64: assignments since the last reset."""

    def add(self, routing: Routing, *, dropped: bool = False) -> Tensor:
        """Count a routing (before dropping unless ``dropped``); returns the counts so far, ``[E]`` int64."""
        counts_E = routing.load if dropped else routing.selected_load
        if counts_E.shape != self.load.shape:
            raise ValueError(
                f"the routing has {routing.num_experts} experts, the accumulator counts {self.load.numel()}: "
                "use one accumulator per layer."
            )
        # Not in place: a caller may still hold the counts that the micro-batch before was given.
        self.load = self.load.to(counts_E.device) + counts_E
        return self.load

    def reset(self) -> None:
        """Forget all counts: call it once per optimizer step."""
        self.load = torch.zeros_like(self.load)


def global_load_balance(
    routing: Routing,
    *,
    load: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
    token_weighted: bool = False,
) -> Tensor:
    """The load-balancing loss with counts summed over all ranks; probabilities and gradients stay local.

    ``E · Σ_i f_i · P_i`` with ``f`` from the counts of all ranks (one ``all_reduce`` of ``E + 1`` integers)
    and ``P`` the mean over this rank's real tokens. The mean of the ranks' losses, weighted by their real
    tokens, is the loss of the whole batch in one process. A batch is balanced when it is balanced as a whole,
    so experts may specialise in what one rank happens to hold.

    Args:
        routing: one layer's routing on this rank. Every rank of the group must make the call.
        load: ``[E]`` local counts to reduce instead of the routing's own: ``accumulator.add(routing)`` for
            gradient accumulation.
        process_group: the ranks that share the batch; None is the default group, or one process where
            ``torch.distributed`` is not initialised.
        token_weighted: multiply by this rank's real tokens over the mean rank's, so that the plain mean over
            ranks, which data-parallel training takes of the gradients, is right for uneven ranks too.

    Raises:
        ValueError: ``load`` does not have one count per expert.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.eye(4), moegate.recipes.switch())
        >>> round(global_load_balance(routing).item(), 3)
        1.0

    Source: Qiu et al., Demons in the Detail, arXiv 2501.11873.
    """
    counts_E = routing.selected_load if load is None else load
    if counts_E.shape != (routing.num_experts,):
        raise ValueError(
            f"load has shape {tuple(counts_E.shape)}, but the routing has {routing.num_experts} experts: "
            f"pass this rank's count per expert, shape ({routing.num_experts},)."
        )
    local = torch.cat([counts_E, routing.real_tokens.reshape(1).to(counts_E.dtype)])
    total = sum_over_ranks(local, process_group)
    loss = load_balance(routing, load=total[:-1])
    if not token_weighted:
        return loss
    num_ranks = dist.get_world_size(process_group) if dist.is_available() and dist.is_initialized() else 1
    return loss * (num_ranks * routing.real_tokens / total[-1].clamp(min=1)).to(loss.dtype)
