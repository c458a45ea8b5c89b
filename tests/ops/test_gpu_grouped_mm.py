"""The grouped products in Triton: every option of the kernels, against loops in float64, into poisoned memory."""

import importlib
import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_sanitizer import SanitizerError
from triton_support import only_on_triton

from moegate.ops import grouped_mm, grouped_outer
from moegate.ops.experts.activations import ACTIVATIONS, GATED, apply_activation

pytestmark = only_on_triton
TYPES = [torch.float32, torch.bfloat16, torch.float16]
every_type = pytest.mark.parametrize("dtype", TYPES)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
FUNCTIONS = {"swiglu": "silu", "geglu": "gelu"}


@dataclass(frozen=True)
class Layout:
    """How many rows each group has, how many none has, and which path of the kernels that takes."""

    ends: tuple[int, ...]
    num_rows: int
    inputs: int
    outputs: int


LAYOUTS = {
    "few rows": Layout((2, 2, 5), 5, 48, 32),
    "few rows, prime sizes": Layout((0, 3, 7, 7), 9, 37, 29),
    "one row of many groups": Layout(tuple(sorted([*range(5), *range(5)])), 5, 16, 16),
    "many rows": Layout((70, 70, 139), 140, 80, 48),
    "many rows, prime sizes": Layout((67, 68), 71, 37, 29),
    "one output of one input": Layout((40,), 41, 1, 1),
    "only rows without a group": Layout((0, 0), 36, 16, 32),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    tolerance = TOLERANCE[dtype or found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def multiplied(rows: Tensor, weight: Tensor, ends: tuple[int, ...]) -> Tensor:
    out = torch.zeros(rows.shape[0], weight.shape[1], dtype=torch.float64)
    for group, (begin, end) in enumerate(itertools.pairwise((0, *ends))):
        for row in range(begin, end):
            out[row] = weight[group].double() @ rows[row].double()
    return out


def summed(left: Tensor, right: Tensor, ends: tuple[int, ...]) -> Tensor:
    out = torch.zeros(len(ends), left.shape[1], right.shape[1], dtype=torch.float64)
    for group, (begin, end) in enumerate(itertools.pairwise((0, *ends))):
        for row in range(begin, end):
            out[group] += torch.outer(left[row].double(), right[row].double())
    return out


def weights(num_groups: int, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(num_groups, outputs, inputs) / inputs**0.5).to(dtype)


def slots_of(num_rows: int, of_token: int) -> tuple[Any, Tensor]:
    """Slots of tokens in any order, some of no token; and which token each row has, or -1."""
    from moegate.ops.grouped_mm.gpu_operator import Slots

    num_tokens = num_rows // of_token + 1
    slot = torch.randperm(num_tokens * of_token)[:num_rows]
    slot[torch.randint(num_rows, (2,))] = torch.tensor([-1, num_tokens * of_token])
    token = torch.where((slot >= 0) & (slot < num_tokens * of_token), slot // of_token, -1)
    return Slots(slot, num_tokens * of_token, of_token), token


def gathered(tokens: Tensor, token: Tensor) -> Tensor:
    return torch.where((token >= 0)[:, None], tokens[token.clamp(min=0)], 0)


@every_layout
@every_type
def test_products(layout: Layout, dtype: torch.dtype) -> None:
    rows, offsets = torch.randn(layout.num_rows, layout.inputs).to(dtype), torch.tensor(layout.ends)
    weight = weights(len(layout.ends), layout.outputs, layout.inputs, dtype)
    assert_close(grouped_mm(rows, weight, offsets), multiplied(rows, weight, layout.ends))
    transposed = weight.mT.contiguous().mT
    assert_close(grouped_mm(rows, transposed, offsets), multiplied(rows, weight, layout.ends))


@every_layout
@every_type
def test_sums(layout: Layout, dtype: torch.dtype) -> None:
    left = torch.randn(layout.num_rows, layout.outputs).to(dtype)
    right = torch.randn(layout.num_rows, layout.inputs).to(dtype)
    found = grouped_outer(left, right, torch.tensor(layout.ends))
    torch.testing.assert_close(
        found.double(), summed(left, right, layout.ends), rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("name", ["few rows", "few rows, prime sizes", "many rows", "many rows, prime sizes"])
def test_products_of_gathered_tokens(activation: str | None, name: str) -> None:
    """With weights of the slots, an activation behind, and what goes into it kept."""
    from moegate.ops.grouped_mm.gpu_operator import product, tiles_of

    layout, dtype = LAYOUTS[name], random.choice(TYPES)
    slots, token = slots_of(layout.num_rows, of_token=3)
    tokens = torch.randn(slots.count // 3, layout.inputs).to(dtype)
    scale = torch.rand(slots.count)
    sides = 2 if activation in GATED else 1
    weight = weights(len(layout.ends), sides * layout.outputs, layout.inputs, dtype)
    out = torch.empty(layout.num_rows, layout.outputs, dtype=dtype)
    pre = torch.empty(layout.num_rows, sides * layout.outputs, dtype=dtype)
    function = None if activation is None else FUNCTIONS.get(activation, activation)
    product(
        tokens,
        weight,
        tiles_of(torch.tensor(layout.ends), layout.num_rows, dtype),
        out,
        gathered=slots,
        scaled=(slots, scale),
        function=function,
        gated=sides == 2,
        pre=pre,
    )
    factor = torch.where(token >= 0, scale[slots.slot_R.clamp(0, slots.count - 1)], 0.0)
    expected = multiplied(gathered(tokens, token), weight, layout.ends) * factor[:, None].double()
    assert_close(pre, expected)
    assert_close(out, expected if activation is None else apply_activation(pre.double(), activation))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["few rows", "many rows", "many rows, prime sizes"])
@pytest.mark.parametrize(
    ("dtype", "sum_dtype"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16,) * 2]
)
def test_sums_of_gathered_tokens_added(side: str, name: str, dtype: torch.dtype, sum_dtype: torch.dtype) -> None:
    from moegate.ops.grouped_mm.gpu_operator import outer

    layout = LAYOUTS[name]
    slots, token = slots_of(layout.num_rows, of_token=2)
    tokens = torch.randn(slots.count // 2, layout.outputs).to(dtype)
    rows, offsets = torch.randn(layout.num_rows, layout.inputs).to(dtype), torch.tensor(layout.ends)
    sides = {"left": (tokens, rows), "right": (rows, tokens)}[side]
    expected = summed(*(gathered(s, token) if s is tokens else s for s in sides), layout.ends)
    begin = torch.randn(expected.shape).to(sum_dtype)
    counts = offsets.diff(prepend=offsets.new_zeros(1))
    begin[counts == 0] = float("nan")  # which a sum would not leave as it was
    found = begin.clone()
    outer(*sides, offsets, found, add=True, **{f"gathered_{side}": slots})
    torch.testing.assert_close(
        found.double(), begin.double() + expected, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype], equal_nan=True
    )
    found = torch.empty_like(begin)
    outer(*sides, offsets, found, **{f"gathered_{side}": slots})
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("ends", [(70, 70, 139), (2, 2, 5)])
def test_matrices_of_groups_without_rows_are_not_read(ends: tuple[int, ...]) -> None:
    rows, weight = torch.randn(ends[-1] + 1, 32), torch.randn(3, 16, 32)
    weight[1] = float("nan")
    rows[-1] = float("nan")
    out = grouped_mm(rows.bfloat16(), weight.bfloat16(), torch.tensor(ends))
    assert bool(out.isfinite().all()) and not out[-1].any()


def test_few_programs_walk_over_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = importlib.import_module("moegate.ops.grouped_mm.gpu_operator")
    sizes = importlib.import_module("moegate.ops.grouped_mm.gpu_sizes")
    monkeypatch.setattr(operator, "machine_of", lambda _: sizes.Machine(1 << 16, 1))
    ends = (130, 131, 131, 330, 400)
    rows, weight = torch.randn(403, 16).half(), weights(5, 288, 16, torch.float16)
    assert_close(grouped_mm(rows, weight, torch.tensor(ends)), multiplied(rows, weight, ends))


def random_ends(num_groups: int, most: int) -> list[int]:
    counts = [random.choice([0, 0, 1, random.randrange(most + 1)]) for _ in range(num_groups)]
    return list(itertools.accumulate(counts))


@pytest.mark.parametrize("num_groups", [1, 3, 40, 1100])
def test_tiles_cover_each_row_once(num_groups: int) -> None:
    from moegate.ops.grouped_mm.gpu_operator import most_tiles, tiles_of

    ends = random_ends(num_groups, 60)
    num_rows = ends[-1] + random.choice([0, 5])
    tiles = tiles_of(torch.tensor(ends), num_rows, torch.bfloat16)
    assert tiles.table.shape == (3, most_tiles(num_rows, num_groups, tiles.rows))
    found = [(group, first, end) for group, first, end in tiles.table.T.tolist() if group >= 0]
    starts = [0, *ends]
    expected = [
        (group, first, end)
        for group, end in enumerate([*ends, num_rows])
        for first in range(starts[group], end, tiles.rows)
    ]
    assert found == expected
    assert bool((tiles.table[0, len(found) :] == -1).all())


@pytest.mark.parametrize("ends", [[-3, 2, 9], [2, 2**62, 5], [9, 9, 9], [-(2**62), -1, 0], [4, 3, 2]])
def test_offsets_that_are_none_stay_within_the_rows(ends: list[int]) -> None:
    """The sanitizer that every test here runs under would see an address outside; that two may own a row is known."""
    rows, weight = torch.randn(6, 16), torch.randn(3, 8, 16)
    assert grouped_outer(rows, rows, torch.tensor(ends)).shape == (3, 16, 16)
    try:
        assert grouped_mm(rows, weight, torch.tensor(ends)).shape == (6, 8)
    except SanitizerError as error:
        assert ends in ([2, 2**62, 5], [4, 3, 2]) and "programs race" in str(error)


@pytest.mark.parametrize("num_groups", [1, 3, 1023])
def test_ends_for_the_products_of_pytorch_stay_within_the_rows(num_groups: int) -> None:
    """These trust their ends, and would write behind the rows."""
    offsets = torch.randint(-20, 60, (num_groups,))
    offsets[num_groups // 2] = random.choice([2**62, -(2**62), 7])
    ends = importlib.import_module("moegate.ops.grouped_mm.gpu_torch").ends_of(offsets, 40)
    assert ends.dtype == torch.int32
    assert ends.tolist() == list(itertools.accumulate(offsets.clamp(0, 40).tolist(), max))


def test_the_same_bits_every_time() -> None:
    rows, weight, offsets = torch.randn(90, 48).bfloat16(), torch.randn(2, 32, 48).bfloat16(), torch.tensor([41, 88])
    assert grouped_mm(rows, weight, offsets).equal(grouped_mm(rows, weight, offsets))
    assert grouped_outer(rows, rows, offsets).equal(grouped_outer(rows, rows, offsets))


def test_expanded_and_strided_rows() -> None:
    weight, offsets = torch.randn(2, 16, 8), torch.tensor([3, 5])
    for rows in (torch.ones(1, 1).expand(5, 8), torch.randn(8, 5).T, torch.randn(10, 16)[::2, ::2]):
        assert_close(grouped_mm(rows, weight, offsets), multiplied(rows, weight, (3, 5)))
        assert_close(grouped_outer(rows, rows, offsets), summed(rows, rows, (3, 5)))


def test_groups_without_rows_are_zero_whatever_pytorch_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_products = importlib.import_module("moegate.ops.grouped_mm.gpu_torch")
    left, right = torch.randn(7, 24).bfloat16(), torch.randn(7, 48).bfloat16()
    ends = torch.tensor([0, 3, 3, 7, 7])

    def careless(left: Tensor, right: Tensor, offs: Tensor) -> Tensor:
        bounds = itertools.pairwise((0, *offs.tolist()))
        products = [left[:, a:b] @ right[a:b] if b > a else left.new_full((24, 48), torch.nan) for a, b in bounds]
        return torch.stack(products)

    monkeypatch.setattr(torch, "_grouped_mm", careless)
    found = torch_products.torch_grouped_outer(left, right, torch_products.ends_of(ends, 7))
    assert_close(found, summed(left, right, (0, 3, 3, 7, 7)))
    assert not found[[0, 2, 4]].any()
