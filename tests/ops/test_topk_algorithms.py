"""The four algorithms against a plain Python sort, on hostile rows."""

import math

import pytest
import torch

from moegate.ops.ordered_topk import ordered_topk
from moegate.ops.ordered_topk.algorithms import ALGORITHMS, BLOCK_SIZE


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
@pytest.mark.parametrize("num_elements", [1, 2, 7, 64, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 5])
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
