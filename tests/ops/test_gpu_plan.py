"""The plan on Triton: every way that it takes, at sizes that the interpreter can do, against lists in plain Python."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from no_waiting import nothing_waits
from test_dispatch_plan import CASES, OPTIONS, as_lists, by_sorting, drawn, expected
from torch import Tensor
from triton_support import only_on_triton

from moegate.ops import dispatch_plan
from moegate.ops.dispatch_plan import Places, gpu_tiles
from moegate.ops.dispatch_plan.gpu_tiles import MOST_BINS, Tiles, plan_tiles
from moegate.ops.dispatch_plan.sizes import most_rows

# Slots in a block, blocks in a group, programs for a group, groups added at a time; of None, those that are chosen.
WAYS: dict[str, tuple[int, int, int, int] | None] = {
    "chosen": None,
    "one program": (32, 10_000, 1, 1),
    "a group for each block": (32, 1, 1, 2),
    "two programs for three blocks": (32, 3, 2, 1),
    "more programs than blocks": (64, 1, 3, 4),
    "one group short of full": (64, 2, 2, 1),
}


def plan_on(way: str, index: Tensor, num_experts: int, **options: Any) -> Places:
    """The plan by one way, before it is trimmed."""
    from moegate.ops.dispatch_plan.gpu_operator import plan_by_counting
    from moegate.ops.dispatch_plan.gpu_sort import plan_by_sorting

    capacity = options.get("capacity")
    rule = options.get("alignment", 1), -1 if capacity is None else capacity, options.get("fill", False)
    num_rows = most_rows(index.numel(), num_experts, *rule)
    if way == "sorted":
        return Places(*plan_by_sorting(index, num_experts, *rule, num_rows))
    tiles, sizes = plan_tiles(index.numel(), num_experts), WAYS[way]
    if sizes is not None:
        block_n, group_size, num_parts, block_g = sizes
        num_blocks = -(-index.numel() // block_n)
        tiles = Tiles(block_n, tiles.block_e, block_g, group_size, num_blocks, num_parts, 4, 4)
    return Places(*plan_by_counting(index, num_experts, *rule, num_rows, tiles))


def untrimmed(index: Tensor, num_experts: int, **options: Any) -> tuple[Any, ...]:
    """What the lists say, with as many rows as there can be."""
    capacity = options.get("capacity")
    rule = options.get("alignment", 1), -1 if capacity is None else capacity, options.get("fill", False)
    counts, offsets, rows, inverse = expected(index, num_experts, **options)
    return counts, offsets, rows + [-1] * (most_rows(index.numel(), num_experts, *rule) - len(rows)), inverse


every_way = pytest.mark.parametrize("way", [*WAYS, "sorted"])


@only_on_triton
@every_way
@pytest.mark.parametrize("case", CASES)
def test_every_case(way: str, case: str) -> None:
    make, num_experts = CASES[case]
    index = make()
    assert as_lists(plan_on(way, index, num_experts)) == untrimmed(index, num_experts)


@only_on_triton
@every_way
@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_every_option(way: str, options: dict[str, Any]) -> None:
    for index in (drawn(41, 5, 7), drawn(23, 3, 7).int(), torch.zeros(0, 2, dtype=torch.int64)):
        assert as_lists(plan_on(way, index, 7, **options)) == untrimmed(index, 7, **options)


@only_on_triton
@every_way
def test_what_is_no_expert_is_an_empty_slot(way: str) -> None:
    index = drawn(31, 5, 6)
    for number in (6, 7, 63, 64, -2, 2**31 - 1, -(2**31)):
        index[number % 31, number % 5] = number
    empty = torch.where((index >= 0) & (index < 6), index, -1)
    assert as_lists(plan_on(way, index.int(), 6)) == untrimmed(empty, 6)
    index[3, 1], index[4, 4], index[30, 0] = 2**63 - 1, -(2**63), 2**32 + 1
    empty[3, 1], empty[4, 4], empty[30, 0] = -1, -1, -1
    assert as_lists(plan_on(way, index, 6)) == untrimmed(empty, 6)


@only_on_triton
@every_way
@pytest.mark.parametrize("num_experts", [1, 2, 32, 33, 63, 129])
def test_every_digit_tells_experts_apart(way: str, num_experts: int) -> None:
    """Experts whose numbers differ in one binary digit, among empty slots, whose digits are all 1."""
    expert = torch.arange(num_experts).bitwise_xor(1 << torch.randint(0, 7, (num_experts,))) % num_experts
    index = torch.stack([torch.arange(num_experts), expert], dim=1).masked_fill(torch.rand(num_experts, 2) < 0.2, -1)
    assert as_lists(plan_on(way, index, num_experts)) == untrimmed(index, num_experts)


@only_on_triton
@pytest.mark.parametrize(
    "make", [lambda: drawn(523, 5, 257), lambda: torch.full((1301, 2), 256), lambda: drawn(1, 2003, 257)]
)
@pytest.mark.parametrize("capacity", [None, 5])
def test_as_many_slots_as_take_two_launches(make: Callable[[], Tensor], capacity: int | None) -> None:
    index = make()
    places = plan_on("chosen", index, 257, capacity=capacity)
    slots, inverse = by_sorting(index, 257, index.numel() if capacity is None else capacity)
    assert np.array_equal(places.slot.numpy()[: slots.size], slots) and bool((places.slot[slots.size :] == -1).all())
    assert np.array_equal(places.inverse.reshape(-1).numpy(), inverse)
    again = plan_on("chosen", index, 257, capacity=capacity)
    assert all(ours.equal(theirs) for ours, theirs in zip(again, places, strict=True))


@only_on_triton
@every_way
def test_counted_in_int64(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tiles, "NARROW", 0)
    index = drawn(53, 3, 9)
    for options in OPTIONS[::2]:
        assert as_lists(plan_on(way, index, 9, **options)) == untrimmed(index, 9, **options)


@pytest.mark.parametrize("num_slots", [0, 1, 31, 33, 512, 1024, 1025, 65_536, 2_000_003, 2**33])
@pytest.mark.parametrize("num_experts", [1, 8, 128, 257, MOST_BINS])
def test_the_sizes_fit(num_slots: int, num_experts: int) -> None:
    tiles = plan_tiles(num_slots, num_experts)
    assert tiles.block_n * (tiles.num_blocks - 1) < max(1, num_slots) <= max(1, tiles.block_n * tiles.num_blocks)
    assert (tiles.num_groups - 1) * tiles.group_size < max(1, tiles.num_blocks) <= tiles.num_groups * tiles.group_size
    for size in (tiles.block_n, tiles.block_e, tiles.block_g, tiles.count_warps, tiles.place_warps):
        assert size.bit_count() == 1
    assert tiles.block_n >= 32 and tiles.block_e >= num_experts and tiles.block_g * tiles.block_e <= 2 * MOST_BINS
    assert tiles.num_groups <= 128 and tiles.num_groups * tiles.num_parts <= 256
    # In one instruction, a warp makes a word of 32 slots.
    assert tiles.num_groups == 1 or tiles.block_n == 32 * tiles.count_warps


@only_on_triton
@pytest.mark.parametrize(
    ("tokens", "top_k", "num_experts", "launches"),
    [(1, 8, 128, 1), (64, 8, 256, 1), (64, 16, 256, 1), (257, 4, 32, 2), (5, 4, MOST_BINS + 1, 0), (0, 4, 8, 1)],
)
def test_launches(tokens: int, top_k: int, num_experts: int, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for a decoding step; and nothing that makes Python wait."""
    from triton.runtime.interpreter import GridExecutor

    launched: list[str] = []
    call = GridExecutor.__call__

    def counted(executor: Any, *arguments: Any, **options: Any) -> Any:
        launched.append(executor.fn.__name__)
        return call(executor, *arguments, **options)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    index = drawn(tokens, top_k, num_experts)
    with nothing_waits(monkeypatch):
        places = dispatch_plan(index, num_experts)
    assert len(launched) == launches
    assert as_lists(places) == untrimmed(index, num_experts)


@only_on_triton
def test_trimmed_where_that_is_asked_for() -> None:
    index = drawn(11, 3, 5)
    trimmed = Places(*torch.ops.moegate.dispatch_plan(index, 5, 4, -1, False, True))
    assert as_lists(trimmed) == expected(index, 5, alignment=4)
