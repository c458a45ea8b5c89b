"""Rows and tokens on Triton: every way that the kernels go through them, at sizes that the interpreter can do."""

from typing import Any

import pytest
import torch
from no_waiting import nothing_waits
from test_permute_combine import DTYPES, SIZES, VIEWS, check_all, check_dots, drawn, equal, expected_rows, wide
from test_permute_combine import expected_tokens as expected_sums
from torch import Tensor
from triton_support import only_on_triton

from moegate.ops import dispatch_plan
from moegate.ops.dispatch_plan import Places
from moegate.ops.gpu.row_tiles import PROCESSORS, adding_tile, copying_tile

OPERATORS = torch.ops.moegate
# What no tensor has a place for.
OUTSIDE = (-2, -(2**31), -(2**63), 2**31, 2**40, 2**63 - 1)


# Others are as large for the interpreter as they say, and smaller here in cases of their own.
SMALL = [size for size in SIZES if size not in {"prime", "many slots", "dropped"}]


@only_on_triton
@pytest.mark.parametrize("size", SMALL)
def test_against_numpy(size: str) -> None:
    check_all("triton", size, DTYPES[SMALL.index(size) % len(DTYPES)])


@only_on_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding(dtype: torch.dtype) -> None:
    check_all("triton", "padded", dtype)


@only_on_triton
@pytest.mark.parametrize("view", [name for name in VIEWS if name != "as it is"])
def test_rows_may_lie_anywhere(view: str) -> None:
    check_all("triton", "padded", DTYPES[list(VIEWS).index(view) % len(DTYPES)], view)


@only_on_triton
def test_expanded_and_strided_inputs() -> None:
    hidden, rows, weights, places = drawn("padded", torch.float32)
    slot, inverse = places.slot.repeat_interleave(2)[::2], places.inverse.mT.contiguous().mT
    for given in (hidden[:1].expand_as(hidden), torch.tensor([[2.5]]).expand_as(hidden)):
        assert equal(
            OPERATORS.permute(given, slot, inverse, weights.mT.contiguous().mT),
            expected_rows(given.contiguous(), places, weights),
        )
    factor = torch.tensor([[0.5]]).expand(inverse.shape)
    given = rows[:1].expand_as(rows)
    assert equal(
        OPERATORS.combine(given, slot, inverse, factor),
        expected_sums(given.contiguous(), places, factor.contiguous()),
    )


@only_on_triton
@pytest.mark.parametrize("top_k", [1, 16, 17, 35])
def test_slots_beyond_those_that_are_taken_at_once(top_k: int) -> None:
    index = torch.randint(0, 9, (3, top_k)).masked_fill(torch.rand(3, top_k) < 0.2, -1)
    places = dispatch_plan(index, 9)
    hidden, rows = torch.randn(3, 33).bfloat16(), torch.randn(3 * top_k, 33).bfloat16()
    check_everything(hidden, rows, torch.randn(3, top_k), places)


@only_on_triton
@pytest.mark.parametrize("width", [1, 16, 128, 513])
def test_narrow_and_wide_rows(width: int) -> None:
    """Several tokens in a program, one piece of a row, exactly one, and more."""
    places = dispatch_plan(torch.tensor([[0, 2], [1, -1], [2, 2]]), 3, alignment=2)
    hidden, rows = torch.randn(3, width), torch.randn(places.slot.shape[0], width)
    check_everything(hidden, rows, torch.randn(3, 2), places)


@only_on_triton
def test_many_tokens() -> None:
    """So many narrow ones that a program of four warps takes them."""
    tokens = 4 * PROCESSORS * 8 + 3
    assert copying_tile(tokens, 16, 4).num_warps == 4
    places = dispatch_plan(torch.randint(-1, 5, (tokens, 1)), 5)
    hidden, weights = torch.randn(tokens, 16), torch.randn(tokens, 1)
    rows = OPERATORS.permute(hidden, places.slot, places.inverse, weights)
    assert equal(rows, expected_rows(hidden, places, weights))
    sums = OPERATORS.combine(rows, places.slot, places.inverse, weights)
    assert equal(sums, expected_sums(rows, places, weights))


def check_everything(hidden: Tensor, rows: Tensor, weights: Tensor, places: Places) -> None:
    """All operators against NumPy; what two of them give at once has the bits that each has alone."""
    ways = places.slot, places.inverse
    for factor in (None, weights):
        assert equal(OPERATORS.permute(hidden, *ways, factor), expected_rows(hidden, places, factor))
        assert equal(OPERATORS.combine(rows, *ways, factor), expected_sums(rows, places, factor))
    dots = OPERATORS.row_dots(rows, hidden, *ways)
    check_dots(dots, rows, hidden, places)
    grad_rows, dots_of_rows = OPERATORS.combine_backward(hidden, rows, *ways, weights)
    assert equal(grad_rows, expected_rows(hidden, places, weights)) and equal(dots_of_rows, dots)
    grad_hidden, dots_of_tokens = OPERATORS.permute_backward(rows, hidden, *ways, weights)
    assert equal(grad_hidden, expected_sums(rows, places, weights)) and equal(dots_of_tokens, dots)


# --- places that are not those of a plan ----------------------------------------------------------------------------


def inside(places: Places) -> Places:
    """What lies outside as nothing."""
    num_rows, num_slots = places.slot.shape[0], places.inverse.numel()
    slot = torch.where((places.slot < 0) | (places.slot >= num_slots), -1, places.slot)
    inverse = torch.where((places.inverse < 0) | (places.inverse >= num_rows), -1, places.inverse)
    return places._replace(slot=slot, inverse=inverse)


@only_on_triton
@pytest.mark.parametrize("changes", ["slot", "inverse", "both"])
def test_what_lies_outside_counts_as_nothing(changes: str) -> None:
    """Not read, not written: the sanitizer of the tests looks at each address."""
    hidden, rows, weights, places = drawn("padded", torch.float32)
    slot, inverse = places.slot.clone(), places.inverse.clone()
    for place, number in enumerate((*OUTSIDE, slot.shape[0], inverse.numel())):
        if changes != "inverse":
            slot[2 * place] = number
        if changes != "slot":
            inverse[place, place % 2] = number
    check_everything_inside(hidden, rows, weights, places._replace(slot=slot, inverse=inverse))


@only_on_triton
def test_places_that_contradict_each_other() -> None:
    """Rows are what ``slot`` says, sums what ``inverse`` says; a slot may have two rows, and a row two slots."""
    hidden, rows, weights, places = drawn("padded", torch.bfloat16)
    for _ in range(3):
        slot = torch.randint(-1, places.inverse.numel(), places.slot.shape)
        inverse = torch.randint(-1, places.slot.shape[0], places.inverse.shape)
        check_everything_inside(hidden, rows, weights, places._replace(slot=slot, inverse=inverse))
        check_everything_inside(hidden, rows, weights, places._replace(slot=slot))


def check_everything_inside(hidden: Tensor, rows: Tensor, weights: Tensor, places: Places) -> None:
    ways, meant = (places.slot, places.inverse), inside(places)
    assert equal(OPERATORS.permute(hidden, *ways, weights), expected_rows(hidden, meant, weights))
    assert equal(OPERATORS.permute(hidden, *ways, None), expected_rows(hidden, meant, None))
    assert equal(OPERATORS.combine(rows, *ways, weights), expected_sums(rows, meant, weights))
    grad_rows, dots = OPERATORS.combine_backward(hidden, rows, *ways, weights)
    assert equal(grad_rows, expected_rows(hidden, meant, weights))
    check_dots(dots, rows, hidden, meant)
    grad_hidden, dots = OPERATORS.permute_backward(rows, hidden, *ways, weights)
    assert equal(grad_hidden, expected_sums(rows, meant, weights))
    check_dots(dots, rows, hidden, meant)


# --- values -------------------------------------------------------------------------------------------------------


@only_on_triton
def test_nothing_unused_is_looked_at() -> None:
    """NaN and infinity in rows of padding, in weights of empty slots and in tokens that go nowhere."""
    index = torch.tensor([[0, 2], [-1, -1], [2, -1], [0, 0]])
    places = dispatch_plan(index, 3, alignment=4)
    hidden, rows, weights = torch.randn(4, 21), torch.randn(places.slot.shape[0], 21), torch.randn(4, 2)
    results = []
    for value in (0.0, float("nan"), float("inf")):
        hidden[1], rows[places.slot < 0], weights[index < 0] = value, value, value
        results.append(everything(hidden, rows, weights, places))
    for clean, *dirty in zip(*results, strict=True):
        assert bool(clean.isfinite().all()) and all(values.equal(clean) for values in dirty)


def everything(hidden: Tensor, rows: Tensor, weights: Tensor, places: Places) -> list[Tensor]:
    ways = places.slot, places.inverse
    return [
        OPERATORS.permute(hidden, *ways, weights),
        OPERATORS.combine(rows, *ways, weights),
        OPERATORS.row_dots(rows, hidden, *ways),
        *OPERATORS.combine_backward(hidden, rows, *ways, weights),
        *OPERATORS.permute_backward(rows, hidden, *ways, weights),
    ]


@only_on_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_narrow_value_comes_through(dtype: torch.dtype) -> None:
    """Exactly, subnormals included, and infinities and NaN as such; by a copy and by a product with 1."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(16, 4096)
    places = dispatch_plan(torch.zeros(16, 1, dtype=torch.int64), 1)
    ways, ones = (places.slot, places.inverse), torch.ones(16, 1)
    assert equal(OPERATORS.permute(values, *ways, None), values)
    assert equal(OPERATORS.permute(values, *ways, -ones), -values)
    assert equal(OPERATORS.combine(values, *ways, -ones), 0 - values)


@only_on_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_token_has_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    tokens, top_k, num_experts = 9, 3, 5
    index = torch.rand(tokens, num_experts).argsort(dim=1)[:, :top_k]
    hidden, weights = torch.randn(tokens, 67).to(dtype), torch.rand(tokens, top_k).to(wide(dtype))
    outputs = torch.randn(tokens, num_experts, 67).to(dtype)

    def run(first: int, last: int) -> list[Tensor]:
        part = slice(first, last)
        places = dispatch_plan(index[part], num_experts)
        rows = outputs[part][places.slot // top_k, index[part].reshape(-1)[places.slot]]
        _, sums, dots, grad_rows, *others = everything(hidden[part], rows, weights[part], places)
        return [sums, dots, grad_rows[places.inverse], *others]

    whole = run(0, tokens)
    assert all(again.equal(once) for again, once in zip(run(0, tokens), whole, strict=True))
    for first, last in ((0, 1), (4, 5), (2, 9)):
        for part, values in zip(run(first, last), whole, strict=True):
            assert part.equal(values[first:last])


# --- launches -----------------------------------------------------------------------------------------------------


@only_on_triton
@pytest.mark.parametrize(("top_k", "expected"), [(2, [1, 1, 1, 1, 1]), (17, [1, 1, 1, 2, 2]), (0, [0, 0, 0, 0, 0])])
def test_launches(top_k: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both gradients of a product take one look at the rows; and nothing makes Python wait."""
    from triton.runtime.interpreter import GridExecutor

    launched: list[str] = []
    call = GridExecutor.__call__

    def counted(executor: Any, *arguments: Any, **options: Any) -> Any:
        launched.append(executor.fn.__name__)
        return call(executor, *arguments, **options)

    places = dispatch_plan(torch.randint(-1, 4, (3, top_k)), 4)
    ways, weights = (places.slot, places.inverse), torch.rand(3, top_k)
    hidden, rows = torch.randn(3, 8), torch.randn(3 * top_k, 8)
    monkeypatch.setattr(GridExecutor, "__call__", counted)
    found = []
    with nothing_waits(monkeypatch):
        for run in (
            lambda: OPERATORS.permute(hidden, *ways, weights),
            lambda: OPERATORS.combine(rows, *ways, weights),
            lambda: OPERATORS.row_dots(rows, hidden, *ways),
            lambda: OPERATORS.combine_backward(hidden, rows, *ways, weights),
            lambda: OPERATORS.permute_backward(rows, hidden, *ways, weights),
        ):
            before = len(launched)
            run()
            found.append(len(launched) - before)
    assert found == expected


@pytest.mark.parametrize("width", [1, 15, 64, 257, 2048, 7168])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_tiles(width: int, itemsize: int) -> None:
    """A thread holds 16 bytes of a row, and there are enough programs for a GPU where there is enough to do."""
    lanes = 32 * 16 // itemsize
    tiles = [adding_tile(width, itemsize), *(copying_tile(tokens, width, itemsize) for tokens in (1, 64, 8192))]
    for tile in tiles:
        assert all(size.bit_count() == 1 for size in tile) and tile.num_warps <= 4
        assert tile.block_t * tile.block_d == tile.num_warps * lanes or tile.num_warps == 1
        assert tile.block_d < 2 * width or width == tile.block_d
    for tokens, tile in zip((1, 64, 8192), tiles[1:], strict=True):
        programs = -(-tokens // tile.block_t) * -(-width // tile.block_d)
        assert programs >= PROCESSORS or tile.num_warps == 1
