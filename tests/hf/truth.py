"""What the experts of a model receive, by hooks of the tests' own: found by names of classes, not by a table.

Truth is a matrix ``[T, E]`` of weights for each call of a block, 0 where an expert does not get the token, and the
slots ``[T, K]`` where the experts are told of slots.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One call of the experts of a block."""

    dense: Tensor
    index: Tensor | None = None
    weights: Tensor | None = None


class Truth:
    """Watches a model; ``calls`` has the calls of each block, by its path, in the order in which blocks ran first."""

    def __init__(self, model: nn.Module, num_experts: int = 8):
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.num_experts = num_experts
        self.handles: list[Any] = []
        for path, module in model.named_modules():
            name = type(module).__name__
            watcher = next((watch for ending, watch in WATCHERS.items() if name.endswith(ending)), None)
            if watcher:
                watcher(self, path, module)

    def before(self, module: nn.Module, hook: Callable[..., None]) -> None:
        def run(module: nn.Module, args: Any, kwargs: Any) -> None:
            hook(*args, *kwargs.values())

        self.handles.append(module.register_forward_pre_hook(run, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., None]) -> None:
        def run(module: nn.Module, args: Any, output: Any) -> None:
            hook(args, output)

        self.handles.append(module.register_forward_hook(run))

    def add(self, path: str, index: Tensor, weights: Tensor) -> None:
        """A call with slots; a number beyond the experts is none."""
        width = max(self.num_experts, int(index.max()) + 1 if index.numel() else 0)
        dense = torch.zeros(len(index), width).scatter_add_(1, index, weights.detach().float())
        self.calls[path].append(Call(dense, index.clone(), weights.detach().clone()))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _block(path: str) -> str:
    return path.rpartition(".")[0]


def _indexed(truth: Truth, path: str, module: nn.Module) -> None:
    truth.before(module, lambda hidden, index, weights: truth.add(_block(path), index, weights))


def _llama4(truth: Truth, path: str, module: nn.Module) -> None:
    hidden: list[Tensor] = []
    truth.before(module, lambda states: hidden.append(states.reshape(-1, states.shape[-1]).detach().clone()))

    def see(scaled: Tensor) -> None:
        states_TD = hidden.pop()
        scaled_ETD = scaled.detach().reshape(-1, *states_TD.shape)
        at_T = states_TD.abs().argmax(dim=1)
        rows_T = torch.arange(len(at_T))
        truth.calls[path].append(Call((scaled_ETD[:, rows_T, at_T] / states_TD[rows_T, at_T]).T))

    truth.before(module.experts, see)


def _switch(truth: Truth, path: str, module: nn.Module) -> None:
    """By the rows that each single expert computes on."""
    now: dict[str, Tensor] = {}

    def begin(hidden: Tensor, chosen: Tensor, weights: Tensor) -> None:
        now.update(hidden=hidden.detach(), weights=weights.detach())
        truth.calls[_block(path)].append(Call(torch.zeros(len(hidden), len(module))))

    truth.before(module, begin)
    for number, expert in enumerate(module.values()):

        def see(rows: Tensor, number: int = number) -> None:
            mine_T = torch.cdist(now["hidden"], rows.detach()).eq(0).any(dim=1)
            assert mine_T.sum() == len(rows)
            truth.calls[_block(path)][-1].dense[mine_T, number] = now["weights"][mine_T, 0]

        truth.before(expert, see)


def _nllb(truth: Truth, path: str, module: nn.Module) -> None:
    """Slot by slot as the experts' own loop goes, and with a look at which of them run."""

    def begin(hidden: Tensor, numbers: Tensor, weights: Tensor) -> None:
        dense = torch.zeros(len(hidden), module.num_experts)
        for token, slot in weights.nonzero().tolist():
            dense[token, int(numbers[token, slot])] += weights[token, slot].item()
        truth.calls[_block(path)].append(Call(dense))
        ran.clear()

    def end(args: Any, output: Any) -> None:
        assert set(truth.calls[_block(path)][-1].dense.nonzero()[:, 1].tolist()) <= ran

    ran: set[int] = set()
    truth.before(module, begin)
    truth.after(module, end)
    for number in range(module.num_experts):
        truth.before(module[f"expert_{number}"], lambda hidden, number=number: ran.add(number))


def _jetmoe(truth: Truth, path: str, module: nn.Module) -> None:
    """By the rows that each expert's share of the first projection is made of."""
    now: dict[str, Tensor] = {}

    def gate(args: Any, output: Any) -> None:
        now.update(hidden=args[0].detach(), logits=output[-1].detach())

    def see(rows: Tensor, sizes: list[int]) -> None:
        dense = torch.zeros(len(now["hidden"]), len(sizes))
        for number, part in enumerate(rows.detach().split(sizes)):
            mine_T = torch.cdist(now["hidden"], part).eq(0).any(dim=1)
            assert mine_T.sum() == len(part)
            dense[mine_T, number] = 1
        shares = now["logits"].masked_fill(dense == 0, float("-inf")).softmax(dim=1)
        truth.calls[path].append(Call(shares))

    truth.after(module.router, gate)
    truth.before(module.input_linear, see)


def _doge(truth: Truth, path: str, module: nn.Module) -> None:
    """By the second table that is looked up in; weights from all pairs of keys."""
    now: list[Tensor] = []
    truth.after(module.router_gate, lambda args, output: now.append(output.detach()))

    def see(index: Tensor) -> None:
        keys = now.pop().view(2, len(index), -1)
        pairs = (keys[0][:, :, None] + keys[1][:, None, :]).flatten(1)
        truth.add(path, index, pairs.gather(1, index).softmax(dim=1))

    truth.before(module.up_embed, see)


def _vitpose(truth: Truth, path: str, module: nn.Module) -> None:
    def see(hidden: Tensor, index: Tensor) -> None:
        each = index.flatten().repeat_interleave(hidden.shape[1])
        truth.calls[_block(path)].append(Call(nn.functional.one_hot(each, truth.num_experts).float(), each[:, None]))

    truth.before(module, see)


WATCHERS: dict[str, Callable[[Truth, str, nn.Module], None]] = {
    "Llama4TextMoe": _llama4,
    "SwitchTransformersExperts": _switch,
    "NllbMoeExperts": _nllb,
    "JetMoeMoE": _jetmoe,
    "JetMoeMoA": _jetmoe,
    "DogeCDMoE": _doge,
    "VitPoseNaiveMoe": _vitpose,
    # These are no experts that tokens are routed to by indices.
    "Llama4TextExperts": lambda truth, path, module: None,
    "JetMoeParallelExperts": lambda truth, path, module: None,
    "InklingSharedExperts": lambda truth, path, module: None,
    "Experts": _indexed,
}
"""By how the name of a class ends; the first that fits."""
