"""Layers on several ranks, for the tests of distribute. Apart from the tests: a process of its own must import them."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cases
import golden_rows as golden
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from moegate import ascend


@dataclass
class World:
    """One layer's tokens on all ranks, with everything that the operators take."""

    world_size: int = 2
    experts: int = 4
    top_k: int = 2
    width: int = 3
    tokens: tuple[int, ...] = (4, 4)
    shared: int = 0
    shared_ranks: int = 0
    special: tuple[int, int, int] = (0, 0, 0)
    mask: str = "none"
    quantised: bool = False
    smooth: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0
    x: list[Tensor] = field(init=False)
    ids: list[Tensor] = field(init=False)
    factors: list[Tensor] = field(init=False)
    active: list[Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        total = self.experts + sum(self.special)
        self.x = [cases.random_rows(generator, n, self.width, dtype=self.dtype) for n in self.tokens]
        self.ids = [
            torch.from_numpy(
                np.array([generator.permutation(total)[: self.top_k] for _ in range(n)], np.int32).reshape(
                    n, self.top_k
                )
            )
            for n in self.tokens
        ]
        self.factors = [cases.random_rows(generator, n, self.top_k) for n in self.tokens]
        if self.mask != "none":
            self.active = [
                torch.from_numpy(generator.random((n, self.top_k) if self.mask == "slots" else n) < 0.6)
                for n in self.tokens
            ]
        self.smoothing = cases.random_rows(generator, self.num_shared + self.experts, self.width)
        self.constants = [cases.random_rows(generator, self.special[2], self.width, dtype=self.dtype) for _ in range(3)]
        self.outside = [cases.random_rows(generator, n, self.width, dtype=self.dtype) for n in self.tokens]

    @property
    def num_shared(self) -> int:
        return self.shared if self.shared_ranks else 0

    @property
    def layout(self) -> dict[str, int]:
        shared = {"shared_expert_num": self.shared, "shared_expert_rank_num": self.shared_ranks} if self.shared else {}
        even = len(set(self.tokens)) == 1
        return shared | {"global_bs": 0 if even else max(self.tokens) * self.world_size}

    def special_counts(self) -> dict[str, int]:
        return dict(zip(("zero_expert_num", "copy_expert_num", "const_expert_num"), self.special, strict=True))

    def special_tensors(self, rank: int) -> dict[str, Tensor]:
        if not any(self.special):
            return {}
        names = ("const_expert_alpha_1", "const_expert_alpha_2", "const_expert_v")
        return {"ori_x": self.x[rank]} | dict(zip(names, self.constants, strict=True))

    def place(self, rank: int, group: Any = "") -> tuple[Any, int, int, int]:
        return group, self.world_size, rank, self.experts

    def dispatch(self, rank: int, group: Any = "", version: int = 2, **more: Any) -> Any:
        operator = ascend.npu_moe_distribute_dispatch_v2 if version == 2 else ascend.npu_moe_distribute_dispatch
        options: dict[str, Any] = self.layout | {"expert_scales": self.factors[rank]} | more
        options |= {"x_active_mask": None if self.active is None else self.active[rank]}
        if self.quantised:
            options |= {"quant_mode": 2, "scales": self.smoothing if self.smooth else None}
        if version == 2:
            options |= self.special_counts()
        return operator(self.x[rank], self.ids[rank], *self.place(rank, group), **options)

    def combine(self, rank: int, rows: Tensor, sent: Any, group: Any = "", version: int = 2, **more: Any) -> Tensor:
        operator = ascend.npu_moe_distribute_combine_v2 if version == 2 else ascend.npu_moe_distribute_combine
        options: dict[str, Any] = self.layout | more
        options |= {"x_active_mask": None if self.active is None else self.active[rank]}
        options |= {"tp_send_counts": sent[5], "expand_scales": sent[6]}
        if version == 2:
            options |= self.special_counts() | self.special_tensors(rank)
        return operator(rows, self.ids[rank], sent[2], sent[4], self.factors[rank], *self.place(rank, group), **options)

    def held(self) -> list[list[list[tuple[int, int, int]]]]:
        active = None if self.active is None else [mask.numpy() for mask in self.active]
        return golden.dispatched(
            [ids.numpy() for ids in self.ids], self.experts, self.shared, self.shared_ranks, active
        )

    def most_rows(self, rank: int) -> int:
        widest = max(self.tokens)
        if rank < self.shared_ranks:
            copies = self.shared_ranks // self.shared
            return widest * -(-self.world_size // copies)
        return widest * self.world_size * min(self.experts // (self.world_size - self.shared_ranks), self.top_k)


def factor_of(rank: int, expert: int) -> float:
    """What the test's expert number ``expert`` of a rank multiplies its rows by."""
    return 1.0 + 0.5 * expert + 0.25 * rank


def run_experts(rank: int, sent: Any) -> Tensor:
    """The rows, each times the number of its expert; what lies beyond them becomes NaN, to be looked at by nobody."""
    rows, counts = sent[0], sent[3]
    factors = torch.tensor([factor_of(rank, expert) for expert in range(len(counts))], dtype=rows.dtype)
    per_row = factors.repeat_interleave(counts)
    out = torch.full_like(rows, float("nan"))
    return torch.cat([rows[: len(per_row)] * per_row[:, None], out[len(per_row) :]])


WORLDS = {
    "one rank": World(1, 4, 2, tokens=(5,)),
    "one expert": World(1, 1, 1, tokens=(3,)),
    "one rank, no tokens": World(1, 4, 2, tokens=(0,)),
    "two ranks": World(2, 4, 3, tokens=(6, 6)),
    "unequal batches": World(2, 6, 2, tokens=(5, 2)),
    "a rank without tokens": World(2, 4, 2, tokens=(0, 3)),
    "four ranks": World(4, 8, 3, tokens=(5, 5, 5, 5)),
    "shared on one rank": World(3, 4, 2, tokens=(4, 4, 4), shared=1, shared_ranks=1),
    "shared on two ranks": World(4, 6, 2, tokens=(3, 3, 3, 3), shared=1, shared_ranks=2),
    "two shared experts": World(4, 4, 2, tokens=(3, 3, 3, 3), shared=2, shared_ranks=2),
    "special experts": World(2, 4, 3, tokens=(7, 7), special=(1, 2, 3)),
    "only zero experts": World(2, 2, 2, tokens=(5, 5), special=(3, 0, 0)),
    "masked tokens": World(2, 4, 2, tokens=(6, 6), mask="tokens"),
    "masked slots": World(2, 4, 3, tokens=(6, 6), mask="slots"),
    "all at once": World(4, 6, 3, tokens=(4, 4, 4, 4), shared=2, shared_ranks=2, special=(1, 1, 1), mask="slots"),
}

IN_PROCESSES = ("two ranks", "unequal batches", "special experts", "masked slots")


def worlds_of_two() -> dict[str, World]:
    worlds = {name: WORLDS[name] for name in IN_PROCESSES}
    worlds["shared"] = World(2, 3, 2, tokens=(4, 4), shared=1, shared_ranks=1, dtype=torch.bfloat16)
    worlds["int8"] = World(2, 4, 2, tokens=(4, 4), quantised=True, smooth=True, dtype=torch.float16)
    return worlds


def work(rank: int, folder: Path) -> None:
    """One of two processes: every world by name and by object of the group, and a backward."""
    torch.manual_seed(rank)
    group = dist.new_group([0, 1])
    results: dict[str, Any] = {}
    for name, world in worlds_of_two().items():
        sent = world.dispatch(rank, group.group_name)
        rows = run_experts(rank, sent) if not world.quantised else sent[0].to(world.dtype)
        results[name] = tuple(sent), world.combine(rank, rows, sent, group)
    world = WORLDS["two ranks"]
    world.x[rank].requires_grad_()
    world.factors[rank].requires_grad_()
    sent = world.dispatch(rank, group)
    world.combine(rank, sent[0] * factor_of(rank, 0), sent, group).sum().backward()
    results["gradients"] = world.x[rank].grad, world.factors[rank].grad
    results["a rank without rows"] = [
        gradient_of_tokens(rank, world, group)
        for world in (World(2, 4, 1, tokens=(3, 0)), World(2, 4, 1, tokens=(3, 3), special=(4, 0, 0)))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results["errors"] = [
            message_of(lambda: world.dispatch(rank, "no such group")),
            message_of(lambda: world.dispatch(1 - rank, group)),
        ]
    torch.save(results, folder / f"{rank}.pt")


def gradient_of_tokens(rank: int, world: World, group: Any) -> tuple[Tensor, Tensor]:
    """Where the last rank's tokens go to no rank, and shared experts outside are added: the ids, the gradient."""
    world.ids[1].fill_(world.experts)
    world.factors = [torch.ones_like(factors) for factors in world.factors]
    x = world.x[rank].requires_grad_()
    sent = world.dispatch(rank, group)
    world.combine(rank, sent[0], sent, group, shared_expert_x=world.outside[rank]).sum().backward()
    assert x.grad is not None
    return world.ids[rank], x.grad


def message_of(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"
