"""Rows from tokens and tokens from rows: every instruction set and the reference, bit by bit against NumPy."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moegate.ops import combine, dispatch_plan, permute
from moegate.ops.dispatch_plan import Places
from moegate.ops.library import KERNELS, available_isas, forced_isa

IMPLEMENTATIONS = ("reference", *available_isas())
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def call(implementation: str, name: str, *arguments: Any) -> Any:
    """An operator by one implementation."""
    operator = getattr(torch.ops.moegate, name).default
    if implementation == "reference":
        return operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)
    if implementation == "triton":
        return operator(*arguments)
    with forced_isa(implementation):
        return operator(*arguments)


# --- oracles ------------------------------------------------------------------------------------------------------


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(values: Tensor) -> np.ndarray:
    return values.to(wide(values.dtype)).numpy()


def rounded(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(values).to(dtype)


def expected_rows(hidden: Tensor, places: Places, weights: Tensor | None) -> Tensor:
    values, top_k = widened(hidden), places.inverse.shape[1]
    rows = np.zeros((places.slot.shape[0], hidden.shape[1]), values.dtype)
    for row, slot in enumerate(places.slot.tolist()):
        if slot >= 0:
            factor = values.dtype.type(1) if weights is None else widened(weights)[slot // top_k, slot % top_k]
            rows[row] = values[slot // top_k] * factor
    return rounded(rows, hidden.dtype)


def expected_tokens(rows: Tensor, places: Places, weights: Tensor | None) -> Tensor:
    values = widened(rows)
    out = np.zeros((places.inverse.shape[0], rows.shape[1]), values.dtype)
    for token, found in enumerate(places.inverse.tolist()):
        for k, row in enumerate(found):
            if row >= 0:
                out[token] += values[row] if weights is None else values[row] * widened(weights)[token, k]
    return rounded(out, rows.dtype)


def check_dots(dots: Tensor, rows: Tensor, hidden: Tensor, places: Places) -> None:
    """Against float64, within the error that sums in float32 (float64) may have."""
    assert dots.dtype == wide(rows.dtype) and dots.shape == places.inverse.shape
    unit = 2.0**-53 if rows.dtype == torch.float64 else 2.0**-24
    for token, found in enumerate(places.inverse.tolist()):
        for k, row in enumerate(found):
            if row < 0:
                assert dots[token, k].item() == 0.0
                continue
            products = rows[row].double().numpy() * hidden[token].double().numpy()
            error = abs(dots[token, k].item() - float(products.sum()))
            assert error <= (products.size / 8 + 12) * unit * float(np.abs(products).sum())


def equal(ours: Tensor, theirs: Tensor) -> bool:
    """Bit by bit, signs of zeros included; any NaN equals any other."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape or not ours.isnan().equal(theirs.isnan()):
        return False
    found, wanted = ours.nan_to_num(nan=1.0), theirs.nan_to_num(nan=1.0)
    return bool((ours.isnan() | ((found == wanted) & (found.signbit() == wanted.signbit()))).all())


# --- inputs -------------------------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda values: values,
    "a slice of wider rows": lambda values: torch.cat([values, values + 1], dim=1)[:, : values.shape[1]],
    "shifted by one": lambda values: torch.cat([values[:, :1] + 1, values], dim=1)[:, 1:],
    "every other row": lambda values: values.repeat_interleave(2, dim=0)[1::2],
    "transposed": lambda values: values.mT.contiguous().mT,
    "every other column": lambda values: values.repeat_interleave(2, dim=1)[:, ::2],
}
# Tokens, slots, experts, width, empty slots, and how rows are padded.
SIZES: dict[str, tuple[int, int, int, int, float, dict[str, Any]]] = {
    "plain": (13, 3, 5, 64, 0.0, {}),
    "prime": (31, 5, 7, 257, 0.3, {}),
    "narrow": (17, 2, 3, 1, 0.2, {}),
    "odd": (11, 4, 6, 83, 0.2, {}),
    "fifteen": (7, 2, 4, 15, 0.2, {}),
    "one slot": (19, 1, 5, 66, 0.2, {}),
    "one token": (1, 8, 64, 128, 0.0, {}),
    "one expert": (9, 2, 1, 48, 0.0, {}),
    "padded": (9, 2, 5, 33, 0.2, {"alignment": 4}),
    "dropped": (29, 4, 3, 40, 0.1, {"capacity": 7}),
    "filled": (6, 2, 7, 17, 0.1, {"capacity": 9, "fill": True}),
    "all empty": (5, 3, 4, 16, 1.0, {}),
    "empty but filled": (5, 3, 4, 16, 1.0, {"capacity": 2, "fill": True}),
    "no tokens": (0, 3, 4, 16, 0.0, {}),
    "no tokens but filled": (0, 3, 4, 16, 0.0, {"capacity": 2, "fill": True}),
    "no slots": (5, 0, 4, 16, 0.0, {}),
    "no width": (5, 2, 4, 0, 0.0, {}),
    "many slots": (3, 70, 70, 20, 0.1, {}),
}


def drawn(size: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Places]:
    """Hidden states, rows, weights and places; a token may name an expert twice."""
    tokens, top_k, num_experts, width, empty, options = SIZES[size]
    index = torch.randint(0, num_experts, (tokens, top_k)).masked_fill(torch.rand(tokens, top_k) < empty, -1)
    places = dispatch_plan(index, num_experts, **options)
    hidden = torch.randn(tokens, width, dtype=torch.float64).to(dtype)
    rows = torch.randn(places.slot.shape[0], width, dtype=torch.float64).to(dtype)
    return hidden, rows, torch.randn(tokens, top_k, dtype=wide(dtype)), places


def check_all(implementation: str, size: str, dtype: torch.dtype, view: str = "as it is") -> None:
    hidden, rows, weights, places = drawn(size, dtype)
    ways = places.slot, places.inverse
    seen = VIEWS[view] if min(hidden.shape[1], 1) else VIEWS["as it is"]
    for factor in (None, weights):
        assert equal(
            call(implementation, "permute", seen(hidden), *ways, factor), expected_rows(hidden, places, factor)
        )
        assert equal(call(implementation, "combine", seen(rows), *ways, factor), expected_tokens(rows, places, factor))
    check_dots(call(implementation, "row_dots", seen(rows), seen(hidden), *ways), rows, hidden, places)
    grad_rows, dots = call(implementation, "combine_backward", seen(hidden), seen(rows), *ways, weights)
    assert equal(grad_rows, expected_rows(hidden, places, weights))
    check_dots(dots, rows, hidden, places)
    grad_hidden, dots = call(implementation, "permute_backward", seen(rows), seen(hidden), *ways, weights)
    assert equal(grad_hidden, expected_tokens(rows, places, weights))
    check_dots(dots, rows, hidden, places)


# --- values -------------------------------------------------------------------------------------------------------


@every_implementation
@every_dtype
@pytest.mark.parametrize("size", SIZES)
def test_against_numpy(implementation: str, dtype: torch.dtype, size: str) -> None:
    check_all(implementation, size, dtype)


@every_implementation
@every_dtype
@pytest.mark.parametrize("view", [name for name in VIEWS if name != "as it is"])
def test_rows_may_lie_anywhere(implementation: str, dtype: torch.dtype, view: str) -> None:
    check_all(implementation, "prime", dtype, view)
    check_all(implementation, "padded", dtype, view)


@every_implementation
def test_expanded_inputs(implementation: str) -> None:
    hidden, rows, _, places = drawn("prime", torch.float32)
    ways = places.slot, places.inverse
    for given in (hidden[:1].expand_as(hidden), torch.tensor([[2.5]]).expand_as(hidden)):
        assert equal(
            call(implementation, "permute", given, *ways, None), expected_rows(given.contiguous(), places, None)
        )
    weights = torch.tensor([[0.5]]).expand(places.inverse.shape)
    given = rows[:1].expand_as(rows)
    assert equal(
        call(implementation, "combine", given, *ways, weights),
        expected_tokens(given.contiguous(), places, weights.contiguous()),
    )
    strided = places.slot.repeat_interleave(2)[::2], places.inverse.mT.contiguous().mT
    assert call(implementation, "permute", hidden, *strided, weights).equal(permute(hidden, *ways, weights))
    assert call(implementation, "combine", rows, *strided, weights).equal(combine(rows, *ways, weights))


@every_implementation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_narrow_value_comes_through(implementation: str, dtype: torch.dtype) -> None:
    """Exactly, subnormals included, and infinities and NaN as such; by a copy and by a product with 1."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(256, 256)
    places = dispatch_plan(torch.zeros(256, 1, dtype=torch.int64), 1)
    ones = torch.ones(256, 1)
    for factor in (None, ones):
        out = call(implementation, "permute", values, places.slot, places.inverse, factor)
        assert equal(out, values)
    assert equal(call(implementation, "permute", values, places.slot, places.inverse, -ones), -values)


@every_implementation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_that_of_torch(implementation: str, dtype: torch.dtype) -> None:
    """Products of all exponents: ties, subnormals, overflow, and what is below half of the smallest."""
    mantissas = 1 + torch.arange(512) / 256.0
    left = (mantissas[:, None] * torch.pow(2.0, torch.arange(-24, 16))[None, :]).to(dtype).repeat(1, 3)
    scale = torch.pow(2.0, torch.randint(-30, 30, (512, 1))) * (1 + torch.randint(0, 2**12, (512, 1)) / 2.0**12)
    scale *= torch.where(torch.rand(512, 1) < 0.5, -1.0, 1.0)
    places = dispatch_plan(torch.zeros(512, 1, dtype=torch.int64), 1)
    wanted = (left.float() * scale).to(dtype)
    assert bool(wanted.isinf().any()) == (dtype == torch.float16)
    for name in ("permute", "combine"):
        assert equal(call(implementation, name, left, places.slot, places.inverse, scale), wanted)
    for extreme in (2.0**-133, 2.0**-149, 3.3e38, float("inf"), float("nan")):
        wanted = (left.float() * extreme).to(dtype)
        weights = torch.full((512, 1), extreme)
        assert equal(call(implementation, "permute", left, places.slot, places.inverse, weights), wanted)


@every_implementation
@every_dtype
def test_nothing_unused_is_looked_at(implementation: str, dtype: torch.dtype) -> None:
    """NaN in rows of padding, in weights of empty slots and in tokens that go nowhere."""
    index = torch.tensor([[0, 2], [-1, -1], [2, -1], [0, 0]])
    places = dispatch_plan(index, 3, alignment=4)
    ways = places.slot, places.inverse
    hidden = torch.randn(4, 37, dtype=torch.float64).to(dtype)
    rows = torch.randn(places.slot.shape[0], 37, dtype=torch.float64).to(dtype)
    weights = torch.randn(4, 2, dtype=wide(dtype))
    results = []
    for value in (0.0, float("nan"), float("inf")):
        hidden[1] = value
        rows[places.slot < 0] = value
        weights[index < 0] = value
        results.append(
            [
                call(implementation, "permute", hidden, *ways, None),
                call(implementation, "permute", hidden, *ways, weights),
                call(implementation, "combine", rows, *ways, None),
                call(implementation, "combine", rows, *ways, weights),
                call(implementation, "row_dots", rows, hidden, *ways),
                *call(implementation, "combine_backward", hidden, rows, *ways, weights),
                *call(implementation, "permute_backward", rows, hidden, *ways, weights),
            ]
        )
    for clean, *dirty in zip(*results, strict=True):
        assert bool(clean.isfinite().all()) and all(values.equal(clean) for values in dirty)


@every_implementation
@every_dtype
def test_broken_values_stay_with_their_token(implementation: str, dtype: torch.dtype) -> None:
    hidden, rows, weights, places = drawn("odd", dtype)
    used = int((places.inverse[3] >= 0).sum())
    assert used > 0
    hidden[3, 5] = float("inf")
    hidden[3, 6] = float("nan")
    out = call(implementation, "permute", hidden, places.slot, places.inverse, weights)
    assert int(out.isnan().sum()) == used and int(out.isinf().sum()) == used
    row = int(places.inverse[3].max())
    rows[row, 5] = float("inf")
    rows[row, 6] = float("nan")
    out = call(implementation, "combine", rows, places.slot, places.inverse, weights)
    assert int(out.isnan().sum()) == 1 and int(out.isinf().sum()) == 1 and not bool(out[3, 5:7].isfinite().any())


@every_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [129, 512])
def test_a_token_has_the_same_bits_in_any_company(implementation: str, dtype: torch.dtype, width: int) -> None:
    """Whatever the batch around it and the threads; large enough to be split."""
    tokens, top_k, num_experts = 499, 4, 13
    index = torch.rand(tokens, num_experts).argsort(dim=1)[:, :top_k]
    hidden, weights = torch.randn(tokens, width).to(dtype), torch.rand(tokens, top_k).to(wide(dtype))
    expert_outputs = torch.randn(tokens, num_experts, width).to(dtype)

    def run(first: int, last: int) -> list[Tensor]:
        part = slice(first, last)
        places = dispatch_plan(index[part], num_experts)
        ways = places.slot, places.inverse
        token, expert = places.slot // top_k, index[part].reshape(-1)[places.slot]
        rows = expert_outputs[part][token, expert]
        grad_rows, dots = call(implementation, "combine_backward", hidden[part], rows, *ways, weights[part])
        grad_hidden, same_dots = call(implementation, "permute_backward", rows, hidden[part], *ways, weights[part])
        assert same_dots.equal(dots) or implementation == "reference"
        return [
            call(implementation, "combine", rows, *ways, weights[part]),
            call(implementation, "row_dots", rows, hidden[part], *ways),
            grad_rows[places.inverse],
            dots,
            grad_hidden,
        ]

    whole = run(0, tokens)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(again.equal(once) for again, once in zip(run(0, tokens), whole, strict=True))
    if implementation != "reference":  # PyTorch's own sums look at the size of the batch
        for first, last in ((0, 1), (250, 251), (100, 203), (498, 499)):
            for part, values in zip(run(first, last), whole, strict=True):
                assert part.equal(values[first:last])


@pytest.mark.skipif(not KERNELS.loaded, reason=f"there are no instruction sets to compare: {KERNELS.reason}")
@every_dtype
def test_instruction_sets_give_the_same_bits(dtype: torch.dtype) -> None:
    hidden, rows, weights, places = drawn("prime", dtype)
    ways = places.slot, places.inverse
    results = [
        (
            call(isa, "row_dots", rows, hidden, *ways),
            *call(isa, "combine_backward", hidden, rows, *ways, weights),
            *call(isa, "permute_backward", rows, hidden, *ways, weights),
        )
        for isa in available_isas()
    ]
    for other in results[1:]:
        assert all(ours.equal(theirs) for ours, theirs in zip(other, results[0], strict=True))


POISONED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_permute_combine import DTYPES, IMPLEMENTATIONS, SIZES, check_all
assert torch.empty(1000, dtype=torch.int64).ne(0).all(), "the allocator gives clean memory"
torch.manual_seed(0)
for implementation in IMPLEMENTATIONS:
    for size in SIZES:
        for dtype in DTYPES:
            check_all(implementation, size, dtype)
"""


@pytest.mark.skipif(not KERNELS.loaded, reason=f"the reference needs no memory of its own: {KERNELS.reason}")
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc fills fresh memory with a byte")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer brings an allocator of its own")
def test_on_poisoned_memory(request: pytest.FixtureRequest) -> None:
    """Kernels allocate in C++, where the poison of the other tests does not reach; the C library has one of its own."""
    done = subprocess.run(
        [sys.executable, "-c", POISONED, str(request.path.parent)],
        env=os.environ | {"MALLOC_PERTURB_": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
