"""``Statistics``: how many tokens each expert of each layer got, in bounded memory, and their sum over processes."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moegate.balance.reduction import sum_over_ranks
from moegate.hf.blocks import Block
from moegate.trace.trace import PHASES

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Counter", "Statistics"]


@dataclass(frozen=True, eq=False, repr=False)
class Statistics:
    """The load of every expert of every layer, by phase.

    Attributes:
        layers: the names of the ``L`` layers.
        num_experts: ``E`` of each layer.
        load_by_phase: ``[P, L, E]`` int64, assignments in each of ``moegate.trace.PHASES``; 0 beyond a layer's experts.
        tokens_by_phase: ``[P, L]`` int64, the tokens that reached the layer, without padding.
        num_calls: forwards of the model.
        reduced: whether they are the sum over a process group.

    Example:
        >>> load, tokens = torch.tensor([[[3, 1]], [[0, 0]], [[0, 0]]]), torch.tensor([[2], [0], [0]])
        >>> statistics = Statistics(("mlp",), (2,), load, tokens, num_calls=1)
        >>> statistics.load.tolist(), statistics.phase("decode").load.tolist()
        ([[3, 1]], [[0, 0]])
    """

    layers: tuple[str, ...]
    num_experts: tuple[int, ...]
    load_by_phase: Tensor
    tokens_by_phase: Tensor
    num_calls: int
    reduced: bool = False

    def __repr__(self) -> str:
        tokens = int(self.tokens.max()) if self.layers else 0
        return f"Statistics({len(self.layers)} layers, {tokens} tokens, {self.num_calls} calls)"

    @property
    def load(self) -> Tensor:
        """``[L, E]`` int64: assignments in all phases."""
        return self.load_by_phase.sum(dim=0)

    @property
    def tokens(self) -> Tensor:
        """``[L]`` int64: the tokens that reached the layer in all phases, without padding."""
        return self.tokens_by_phase.sum(dim=0)

    def phase(self, name: str) -> "Statistics":
        """The statistics of one phase: ``forward``, ``prefill`` or ``decode``; a ``ValueError`` for any other."""
        if name not in PHASES:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {name!r}.")
        keep_P = torch.arange(len(PHASES)) == PHASES.index(name)
        load, tokens = self.load_by_phase * keep_P[:, None, None], self.tokens_by_phase * keep_P[:, None]
        return replace(self, load_by_phase=load, tokens_by_phase=tokens)

    def reduce(self, group: "ProcessGroup | None" = None) -> "Statistics":
        """The sum over the processes of a group; every one of them must call it.

        What is a sum already stays as it is, so that nothing is added up twice. Without ``torch.distributed`` the sum
        is the process's own.

        Args:
            group: the processes; None for all.
        """
        if self.reduced:
            return self
        parts = [self.load_by_phase.flatten(), self.tokens_by_phase.flatten(), torch.tensor([self.num_calls])]
        total = sum_over_ranks(torch.cat(parts).to(_device_of(group)), group).cpu()
        load, tokens, calls = total.split([part.numel() for part in parts])
        return replace(
            self,
            load_by_phase=load.view_as(self.load_by_phase),
            tokens_by_phase=tokens.view_as(self.tokens_by_phase),
            num_calls=int(calls),
            reduced=True,
        )


def _device_of(group: "ProcessGroup | None") -> torch.device:
    """Where a process group takes tensors from."""
    dist = torch.distributed
    if not dist.is_available() or not dist.is_initialized() or "nccl" not in dist.get_backend(group):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


class Counter:
    """Counts assignments and tokens, on the device where they are; nothing is read back until it is asked for."""

    def __init__(self, layers: tuple[str, ...], num_experts: tuple[int, ...]):
        self.layers = layers
        self.num_experts = num_experts
        # A place for empty slots before each layer's experts; one too many is how transformers says "no expert".
        self.width = max(num_experts) + 1
        self.counts: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.places: dict[tuple[int, tuple[int, ...], torch.device], tuple[Tensor, Tensor]] = {}
        self.num_calls = 0

    def add(self, block: Block) -> None:
        """Counts what the layers of a block received, without its padding."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        for layer, seen in block.layers.items():
            index = seen.received.expert_index
            # Layers that saw the same tokens are counted together.
            alike.setdefault((index.shape, index.device, None if seen.positions is None else layer), []).append(layer)
        for layers in alike.values():
            mask_N, positions_N = block.token_mask, block.layers[layers[0]].positions
            if mask_N is not None and positions_N is not None:
                mask_N = mask_N[positions_N.to(mask_N.device)]
            self._count(block, layers, mask_N)

    def _count(self, block: Block, layers: list[int], mask_N: Tensor | None) -> None:
        index_LNK = torch.stack([block.layers[layer].received.expert_index for layer in layers]).long()
        device = index_LNK.device
        load_N, tokens_PL = self._tensors(device)
        row_L, first_L11 = self._place(block.phase, tuple(layers), device)
        bin_LNK = index_LNK + first_L11
        if mask_N is None:
            real_N1 = torch.ones((), dtype=torch.int64, device=device).expand(index_LNK.shape[1], 1)
        else:
            real_N1 = mask_N.to(device, torch.int64)[:, None]
        load_N.scatter_add_(0, bin_LNK.view(-1), real_N1.expand(bin_LNK.shape).reshape(-1))
        tokens_PL.view(-1).index_add_(0, row_L, real_N1.sum().expand(len(layers)))

    def _place(self, phase: int, layers: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Where layers are in the tokens ``[P, L]``, and where the experts of each begin in the load; remembered."""
        key = phase, layers, device
        if key not in self.places:
            row_L = torch.tensor([phase * len(self.layers) + layer for layer in layers], device=device)
            self.places[key] = row_L, (row_L * self.width + 1)[:, None, None]
        return self.places[key]

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self.counts:
            shape = (len(PHASES), len(self.layers))
            load = torch.zeros(shape[0] * shape[1] * self.width + 1, dtype=torch.int64, device=device)
            self.counts[device] = load, torch.zeros(shape, dtype=torch.int64, device=device)
        return self.counts[device]

    def statistics(self) -> Statistics:
        """What has been counted so far."""
        shape = (len(PHASES), len(self.layers))
        load = torch.zeros(*shape, self.width, dtype=torch.int64)
        tokens = torch.zeros(shape, dtype=torch.int64)
        for counted_load, counted_tokens in self.counts.values():
            load += counted_load[:-1].cpu().view_as(load)
            tokens += counted_tokens.cpu()
        own_LE = torch.arange(self.width - 1) < torch.tensor(self.num_experts)[:, None]
        return Statistics(self.layers, self.num_experts, load[:, :, 1:] * own_LE, tokens, self.num_calls)
