"""The four algorithms against a plain Python sort, on hostile rows: the references, and the C++ ones."""

import math

import pytest
import torch
from triton_support import not_on_triton

from moegate.ops.library import KERNELS, available_isas, forced_isa
from moegate.ops.ordered_topk import ordered_topk
from moegate.ops.ordered_topk.algorithms import ALGORITHMS, BLOCK_SIZE, NAMES, scratch_bytes, topk_by_algorithm

pytestmark = not_on_triton("a study of algorithms on the CPU")
needs_kernels = pytest.mark.skipif(not KERNELS.loaded, reason=f"without the C++ kernels: {KERNELS.reason}")
SIZES = [1, 2, 7, 16, 17, 64, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 5]


def expected(values, k):
    """NaN last, greatest first, ties to the lowest index."""
    order = sorted(
        range(len(values)), key=lambda i: (math.isnan(values[i]), 0 if math.isnan(values[i]) else -values[i], i)
    )
    return order[:k]


def hostile_rows(num_elements):
    generator = torch.Generator().manual_seed(num_elements)
    ties = torch.randint(-2, 3, (4, num_elements), generator=generator).float()
    spread = torch.randn(4, num_elements, generator=generator)
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45])
    mixed = special[torch.randint(0, 6, (4, num_elements), generator=generator)]
    return torch.cat([ties, spread, mixed, torch.zeros(1, num_elements)])


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("num_elements", SIZES)
def test_against_a_sort(name, num_elements):
    rows = hostile_rows(num_elements)
    for k in {0, 1, min(2, num_elements), num_elements // 2, num_elements}:
        found = ALGORITHMS[name](rows, k)
        assert found.tolist() == [expected(row, k) for row in rows.tolist()]
        assert torch.equal(found, ordered_topk(rows, k))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_and_leading_dimensions(name, dtype):
    values = torch.randn(2, 3, 300).to(dtype)
    assert torch.equal(ALGORITHMS[name](values, 9), ordered_topk(values, 9))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_rows(name):
    assert ALGORITHMS[name](torch.empty(0, 8), 3).shape == (0, 3)


def ks_of(num_elements):
    return sorted({0, 1, min(2, num_elements), num_elements // 2, max(num_elements - 1, 0), num_elements})


@needs_kernels
@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_elements", SIZES)
def test_the_kernels_against_a_sort(name, isa, num_elements):
    rows = hostile_rows(num_elements)
    with forced_isa(isa):
        for k in ks_of(num_elements):
            assert topk_by_algorithm(rows, k, name).tolist() == [expected(row, k) for row in rows.tolist()]


# What makes pivots fail: sorted rows, organ pipes, and a row against the median of three (Musser's killer sequence).
def rows_that_hurt(num_elements):
    rising = torch.arange(num_elements).float()
    half = num_elements // 2
    pipe = torch.cat([rising[:half], rising[: num_elements - half].flip(0)])
    killer = torch.empty(num_elements)
    killer[:half:2] = rising[1 : half + 1 : 2][: len(killer[:half:2])]
    killer[1:half:2] = rising[half:][: len(killer[1:half:2])]
    killer[half:] = rising[: num_elements - half] * 2
    return torch.stack([rising, rising.flip(0), pipe, killer, -killer])


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_make_pivots_fail(name):
    rows = rows_that_hurt(5000)
    for k in (1, 100, 2500, 4999):
        assert topk_by_algorithm(rows, k, name).tolist() == [expected(row, k) for row in rows.tolist()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_strides_change_nothing(name, threads):
    wide = torch.randn(80, 2400)
    view = wide[::2, 1:2001]
    torch.set_num_threads(threads)
    assert torch.equal(topk_by_algorithm(view, 7, name), ordered_topk(view, 7))
    assert torch.equal(topk_by_algorithm(view[:1].expand(5, -1), 7, name), ordered_topk(view[:1].expand(5, -1), 7))


@pytest.mark.parametrize("name", NAMES)
def test_the_operator_takes_leading_dimensions_and_narrow_types(name):
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.randn(2, 3, 300).to(dtype)
        assert torch.equal(topk_by_algorithm(values, 9, name), ordered_topk(values, 9))
    assert topk_by_algorithm(torch.empty(0, 8), 3, name).shape == (0, 3)
    assert topk_by_algorithm(torch.empty(2, 0), 0, name).shape == (2, 0)


@pytest.mark.parametrize("number", range(4))
def test_opcheck(number):
    torch.library.opcheck(torch.ops.moegate.topk_by_algorithm.default, (torch.randn(3, 20), 4, number))


@pytest.mark.parametrize(
    ("values", "k", "name", "said"),
    [
        (torch.zeros(2, 3), 4, "heap", "k=4 is out of range"),
        (torch.zeros(2, 3), -1, "heap", "k=-1 is out of range"),
        (torch.tensor(1.0), 0, "heap", "out of range for values of shape"),
        (torch.zeros(2, 3).double(), 1, "heap", "float64"),
        (torch.zeros(2, 3, dtype=torch.int64), 1, "heap", "int64"),
        (torch.zeros(2, 3), 1, "bubble", "choose one of full_sort, heap, quickselect, blocked"),
    ],
)
def test_what_is_refused(values, k, name, said):
    with pytest.raises(ValueError, match=said):
        topk_by_algorithm(values, k, name)


@needs_kernels
@pytest.mark.parametrize(
    ("values", "k", "number", "said"),
    [
        (torch.zeros(2, 3), 4, 0, "k=4 is out of range"),
        (torch.zeros(2, 3), -1, 0, "k=-1 is out of range"),
        (torch.zeros(2, 3), 1, 4, "No algorithm has the number 4"),
        (torch.zeros(2, 3), 1, -1, "No algorithm has the number -1"),
        (torch.zeros(3), 1, 0, "must have 2 dimensions"),
        (torch.zeros(2, 3).double(), 1, 0, "must be Float"),
    ],
)
def test_what_the_kernel_refuses(values, k, number, said):
    with pytest.raises(RuntimeError, match=said):
        torch.ops.moegate.topk_by_algorithm(values, k, number)


@needs_kernels
def test_scratch_is_what_each_algorithm_needs():
    found = {name: scratch_bytes(name, 65536, 8) for name in NAMES}
    assert found == {"full_sort": 8 * 65536, "heap": 8 * 8, "quickselect": 8 * 65536, "blocked": 8 * (256 + 16)}
