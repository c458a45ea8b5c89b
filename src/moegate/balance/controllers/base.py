"""What all controllers share: counting, reducing, freezing, and state that keeps its precision."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moegate.balance.reduction import sum_over_ranks
from moegate.parts import check_number, check_positive_integer
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
    - All state is int64 and float32 tensors in the state dict, and stays float32 under ``.to(bfloat16)``.
    - What was counted since the last update belongs to this rank, so it is not in buffers: inside a model that
      ``DistributedDataParallel`` wraps, buffers are overwritten with those of rank 0 before every forward.

    The bias has to be float32: a bfloat16 bias of 0.5 or more rounds steps of 0.001 away, and stalls.
    """

    load: Tensor
    """``[E]`` int64: assignments observed since the last update."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        check_positive_integer("num_experts", num_experts)
        self.num_experts = num_experts
        self._pending: list[str] = []
        self.register_pending("load", torch.zeros(num_experts, dtype=torch.int64))

    def register_pending(self, name: str, counts: Tensor) -> None:
        """Hold ``counts`` as ``self.<name>``: in the state dict, moved with the module, cleared by ``forget``.

        For what a controller observes between two updates, which differs from rank to rank. State that is the same
        on all ranks belongs in a buffer.
        """
        setattr(self, name, counts)
        self._pending.append(name)

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
        # A wrapper that moves buffers one by one (fully_shard) leaves the counts behind; they follow the tokens.
        for name in self._pending:
            setattr(self, name, getattr(self, name).to(routing.selected_index.device))
        self.load += routing.selected_load

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
            state = next(self.buffers(recurse=False), load_E)
            bias += self.step(load_E.to(state.device)).to(bias.device)
        self.forget()

    def reduce(self, process_group: dist.ProcessGroup | None) -> Tensor:
        """The counts of all ranks, ``[E]`` int64. A controller that observes more reduces it here too."""
        return sum_over_ranks(self.load, process_group)

    def forget(self) -> None:
        """Clear what was observed since the last update."""
        for name in self._pending:
            getattr(self, name).zero_()

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        hidden = {"training", *self._pending}
        names = (name for name in vars(self) if not name.startswith("_") and name not in hidden)
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BiasController":
        # .to(bfloat16) and .half() go through here; state must not be rounded on the way.
        with self._pending_as_buffers():
            before = dict(self.named_buffers(recurse=False))
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # nn.Module leaves it untyped
            for name, buffer in before.items():
                moved = self._buffers[name]
                if moved is not None and moved.dtype != buffer.dtype:
                    self._buffers[name] = buffer.to(moved.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        with self._pending_as_buffers():
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        with self._pending_as_buffers():
            super()._load_from_state_dict(*arguments)

    @contextmanager
    def _pending_as_buffers(self) -> Iterator[None]:
        """While the block runs, pending counts are buffers: PyTorch's own way to save, load, assign and move them."""
        for name in self._pending:
            self._buffers[name] = vars(self).pop(name)
        try:
            yield
        finally:
            for name in self._pending:
                vars(self)[name] = self._buffers.pop(name)


def violation(load_E: Tensor) -> Tensor:
    """``(n̄ - n_i) / n̄``, float32 ``[E]``: positive for an expert with too little; 1 without any load.

    Example:
        >>> violation(torch.tensor([3, 1]))
        tensor([-0.5000,  0.5000])
    """
    # In float32 only after the exact integer difference: counts past 2^24 lose their last digits.
    total = load_E.sum()
    return (total - load_E * load_E.numel()).to(torch.float32) / total.to(torch.float32)


def check_gain(name: str, value: float) -> None:
    """Raises unless ``value`` is a finite number of at least 0; a gain of 0 has no effect."""
    check_number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}.")


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
