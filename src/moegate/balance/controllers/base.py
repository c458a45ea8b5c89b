"""What all controllers share: counting, reducing, freezing, and state that keeps its precision."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moegate.balance.reduction import sum_over_ranks
from moegate.records import Routing


class BiasController(nn.Module, ABC):
    """Counts what a layer selects, and moves the layer's selection bias towards balance.

    A subclass says how far: ``step(load_E) -> delta_E``. The rest is the same for all:

    - ``observe`` counts real tokens, before dropping. It gets the routing that the layer *returned*, so a
      forward pass that activation checkpointing recomputes in the backward counts once.
    - ``update`` sums the counts over the ranks, edits the bias in place, and clears the counts. Call it once
      per optimizer step. Where no token was observed on any rank it changes nothing.
    - In evaluation mode (``controller.eval()``, or that of the model it is part of) both do nothing. That is
      also how to freeze a bias.
    - All state is in buffers (int64 and float32), in the state dict, and stays float32 under
      ``.to(bfloat16)``.

    The bias has to be float32: a bfloat16 bias of 0.5 or more rounds steps of 0.001 away, and stalls.
    """

    load: Tensor
    """``[E]`` int64: assignments observed since the last update."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"num_experts={num_experts}: a controller needs at least one expert.")
        self.num_experts = num_experts
        self.register_buffer("load", torch.zeros(num_experts, dtype=torch.int64))

    @abstractmethod
    def step(self, load_E: Tensor) -> Tensor:
        """The change of the bias, ``[E]`` float32, given the counts of all ranks, whose sum is positive."""

    @torch.no_grad()
    def observe(self, routing: Routing) -> None:
        """Count a routing; in evaluation mode, do nothing."""
        if not self.training:
            return
        if routing.num_experts != self.num_experts:
            raise ValueError(
                f"the routing has {routing.num_experts} experts, the controller has {self.num_experts}: make "
                "one controller per layer, with that layer's number of experts."
            )
        self.load += routing.selected_load.to(self.load.device)

    @torch.no_grad()
    def update(self, bias: Tensor, *, process_group: dist.ProcessGroup | None = None) -> None:
        """Move ``bias`` (float32 ``[E]``, in place) by one step and forget the counts.

        Args:
            bias: the layer's selection bias, such as ``moe.gate.e_score_correction_bias``.
            process_group: the ranks whose tokens the layer routes; None is the default group, or one process
                where ``torch.distributed`` is not initialised. Every rank of the group must make the call.

        Raises:
            TypeError: the bias is not a float32 tensor.
            ValueError: the bias does not have one entry per expert.
        """
        _check_bias(bias, self.num_experts)
        if not self.training:
            return
        load_E = self.reduce(process_group)
        if load_E.sum() > 0:
            bias += self.step(load_E).to(bias.device)
        self.forget()

    def reduce(self, process_group: dist.ProcessGroup | None) -> Tensor:
        """The counts of all ranks, ``[E]`` int64. A controller that observes more reduces it here too."""
        return sum_over_ranks(self.load, process_group)

    def forget(self) -> None:
        """Clear what was observed since the last update."""
        self.load.zero_()

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        names = (name for name in vars(self) if not name.startswith("_") and name != "training")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BiasController":
        # .to(bfloat16) and .half() go through here; state must not be rounded on the way.
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # nn.Module leaves it untyped
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self


def violation(load_E: Tensor) -> Tensor:
    """``(n̄ - n_i) / n̄``, float32 ``[E]``: positive for an expert with too little; 1 without any load.

    Example:
        >>> violation(torch.tensor([3, 1]))
        tensor([-0.5000,  0.5000])
    """
    # In float32 only after the exact integer difference: counts past 2^24 lose their last digits.
    total = load_E.sum()
    return (total - load_E * load_E.numel()).to(torch.float32) / total.to(torch.float32)


def _check_bias(bias: Tensor, num_experts: int) -> None:
    if not isinstance(bias, Tensor) or bias.dtype != torch.float32:
        found = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(
            f"bias is {found}, but must be a float32 tensor: in lower precision the steps round away. Keep "
            "the selection bias in a float32 buffer (moegate.MoE with correction_bias=True does)."
        )
    if bias.shape != (num_experts,):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, but the controller has {num_experts} experts: pass the "
            f"layer's bias of shape ({num_experts},)."
        )
