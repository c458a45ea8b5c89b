"""The total order of top-k, against a sort in plain Python."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from triton_support import examples

from moegate.ops import ordered_topk, topk_by_key

VALUES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, math.inf, -math.inf, math.nan, -math.nan]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def expected(row: list[float], k: int, excluded: list[bool]) -> list[int]:
    def key(index: int) -> tuple[bool, bool, float, int]:
        if excluded[index]:
            return True, False, 0.0, index  # what is excluded keeps the order of its indices
        value = row[index]
        return False, math.isnan(value), 0.0 if math.isnan(value) else -value, index

    return sorted(range(len(row)), key=key)[:k]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=examples(100), deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_against_a_sort(dtype: torch.dtype, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    row = data.draw(st.lists(st.sampled_from(VALUES), min_size=size, max_size=size))
    excluded = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    k = data.draw(st.integers(0, size))
    values = torch.tensor(row, dtype=torch.float64).to(dtype)
    ours = ordered_topk(values, k, torch.tensor(excluded))
    assert ours.dtype == torch.int64
    assert ours.tolist() == expected(values.double().tolist(), k, excluded)
    assert ordered_topk(values, k).tolist() == expected(values.double().tolist(), k, [False] * size)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 5), (1, 1), (2, 3, 257)])
def test_shapes(shape: tuple[int, ...]) -> None:
    for k in {0, min(1, shape[-1]), shape[-1]}:
        assert ordered_topk(torch.randn(shape), k).shape == (*shape[:-1], k)


def test_what_is_excluded_broadcasts() -> None:
    values = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert ordered_topk(values, 2, torch.tensor([True, False, False])).tolist() == [[1, 2], [2, 1]]


def test_excluded_comes_after_nan_and_minus_infinity() -> None:
    values = torch.tensor([9.0, float("nan"), float("-inf")])
    assert ordered_topk(values, 3, torch.tensor([True, False, False])).tolist() == [2, 1, 0]


def test_keys_use_all_their_bits() -> None:
    key = torch.tensor([2**31 - 1, -(2**31), 0, -(2**31), 2**31 - 1], dtype=torch.int32)
    assert topk_by_key(key, 5).tolist() == [0, 4, 2, 1, 3]


@pytest.mark.parametrize("k", [-1, 4])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} is out of range: the rows have 3 elements"):
        ordered_topk(torch.randn(2, 3), k)
    with pytest.raises(ValueError, match=f"k={k} is out of range"):
        topk_by_key(torch.zeros(2, 3, dtype=torch.int32), k)


def test_strided_rows() -> None:
    values = torch.randn(5, 7)
    assert ordered_topk(values.mT.contiguous().mT, 3).equal(ordered_topk(values, 3))
    assert ordered_topk(values[:, ::2], 3).equal(ordered_topk(values[:, ::2].contiguous(), 3))


def test_order_carries_no_gradient() -> None:
    assert not ordered_topk(torch.randn(3, 4, requires_grad=True), 2).requires_grad
