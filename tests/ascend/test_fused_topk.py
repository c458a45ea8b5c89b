"""``moe_fused_topk`` against the golden: a mask of zeros, groups by their top N, a mapping to replicas."""

import golden_gating as golden
import numpy as np
import pytest
import torch
from gating_inputs import DTYPES, PATTERNS, assert_index, assert_weights, biases, logits, widened
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moegate.ascend import Compat, moe_fused_topk, npu_moe_gating_top_k


def assert_golden(x: Tensor, add_num: Tensor, sizes: tuple[int, int, int, int], is_norm: bool, scale: float) -> None:
    y, indices = moe_fused_topk(x, add_num, None, None, *sizes, is_norm=is_norm, scale=scale)
    names = ("group_num", "group_topk", "top_n", "top_k")
    expected = golden.moe_fused_topk(
        widened(x), widened(add_num), is_norm=is_norm, scale=scale, **dict(zip(names, sizes, strict=True))
    )
    assert_index(indices, expected, least_certain=0.0)
    assert_weights(y, expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("is_norm", [False, True])
@pytest.mark.parametrize(
    "sizes", [(8, 4, 2, 8), (8, 3, 5, 8), (4, 1, 1, 3), (1, 1, 2, 8), (8, 8, 2, 8), (64, 20, 1, 6)]
)
def test_modes(sizes: tuple[int, int, int, int], is_norm: bool, pattern: str, dtype: torch.dtype) -> None:
    x = logits(pattern, 7, 64, dtype)
    for kind in ("small", "pairs"):
        assert_golden(x, biases(kind, 64, dtype), sizes, is_norm, 2.5)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_random_legal_arguments(data: st.DataObject) -> None:
    group_num, group_size = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 20))
    num_experts, dtype = group_num * group_size, data.draw(st.sampled_from(DTYPES))
    seed = data.draw(st.integers(0, 2**20))
    x = logits(data.draw(st.sampled_from(sorted(PATTERNS))), 3, num_experts, dtype, seed)
    shift = data.draw(st.sampled_from([0.0, -0.5, -1.0, -2.0]))
    sizes = (
        group_num,
        data.draw(st.integers(1, group_num)),
        data.draw(st.integers(1, group_size)),
        data.draw(st.integers(1, num_experts)),
    )
    assert_golden(x, biases("small", num_experts, dtype, seed) + shift, sizes, data.draw(st.booleans()), 1.5)


def test_a_zero_beats_a_negative_score() -> None:
    """Where all biased scores are negative, the experts of the dropped groups win: unlike MoeGatingTopK's."""
    x, add_num = torch.randn(50, 32), torch.full((32,), -1.5)
    _, indices = moe_fused_topk(x, add_num, None, None, 4, 2, 2, 8)
    kept = {"bias": add_num, "k_group": 2, "group_count": 4, "group_select_mode": 1, "norm_type": 1}
    _, expert_idx, _ = npu_moe_gating_top_k(x, 8, **kept)
    assert not set(indices[0].tolist()) & set(expert_idx[0].tolist())
    _, excluded = moe_fused_topk(x, add_num, None, None, 4, 2, 2, 8, compat=Compat(dropped_groups="excluded"))
    assert excluded.tolist() == expert_idx.tolist()


def test_the_twins_agree_while_scores_are_positive() -> None:
    x, add_num = torch.randn(50, 64), torch.rand(64) * 0.1
    y, indices = moe_fused_topk(x, add_num, None, None, 8, 4, 2, 8, scale=2.5)
    gate_y, expert_idx, _ = npu_moe_gating_top_k(
        x, 8, bias=add_num, k_group=4, group_count=8, group_select_mode=1, norm_type=1, routed_scaling_factor=2.5
    )
    assert indices.tolist() == expert_idx.tolist()
    torch.testing.assert_close(y, gate_y, rtol=1e-6, atol=0)


def test_the_scale_acts_with_is_norm_only() -> None:
    x, add_num = torch.randn(4, 8), torch.zeros(8)
    plain = moe_fused_topk(x, add_num, None, None, 1, 1, 1, 2, is_norm=False, scale=7.0)[0]
    torch.testing.assert_close(plain, x.sigmoid().topk(2).values, rtol=1e-6, atol=0)


def test_without_an_eps_zero_divides_to_nan() -> None:
    y, _ = moe_fused_topk(torch.full((1, 4), -float("inf")), torch.zeros(4), None, None, 1, 1, 1, 2)
    assert y.isnan().all()


def test_minus_infinity_in_a_dropped_group_becomes_zero_and_not_nan() -> None:
    inf = float("inf")
    x, add_num = torch.zeros(1, 4), torch.tensor([-inf, -inf, -2.0, -3.0])
    assert moe_fused_topk(x, add_num, None, None, 2, 1, 1, 3)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_the_mapping_takes_turns_by_row(dtype: torch.dtype) -> None:
    num_experts, columns = 8, 3
    x, add_num = torch.randn(11, num_experts), torch.zeros(num_experts)
    mapping_num = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0], dtype=dtype)
    mapping_table = torch.randint(100, 200, (num_experts, columns), dtype=dtype)
    y, indices = moe_fused_topk(x, add_num, mapping_num, mapping_table, 2, 1, 2, 4, enable_expert_mapping=True)
    plain_y, plain = moe_fused_topk(x, add_num, None, None, 2, 1, 2, 4)
    expected = [
        [int(mapping_table[e, row % max(1, int(mapping_num[e]))]) for e in experts]
        for row, experts in enumerate(plain.tolist())
    ]
    assert indices.tolist() == expected
    assert indices.dtype == torch.int32
    assert torch.equal(y, plain_y)


def test_a_mapping_that_is_not_enabled_is_not_read() -> None:
    x = torch.randn(2, 4)
    given = moe_fused_topk(x, torch.zeros(4), torch.tensor([9]), torch.zeros(1), 1, 1, 1, 2)
    assert torch.equal(given[1], moe_fused_topk(x, torch.zeros(4), None, None, 1, 1, 1, 2)[1])


def test_gradient_against_finite_differences() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    add_num = torch.randn(8, dtype=torch.float64) * 0.1
    for is_norm in (True, False):

        def weights(x: Tensor, is_norm: bool = is_norm) -> Tensor:
            return moe_fused_topk(x, add_num, None, None, 4, 2, 2, 3, is_norm=is_norm, scale=2.0)[0]

        assert torch.autograd.gradcheck(weights, x)


def test_no_rows() -> None:
    y, indices = moe_fused_topk(torch.zeros(0, 4, dtype=torch.float16), torch.zeros(4), None, None, 2, 1, 1, 2)
    assert y.shape == indices.shape == (0, 2)
    assert y.dtype == torch.float32


def test_sums_of_many_do_not_depend_on_their_order() -> None:
    x = torch.randn(5, 32)
    mirrored = x.unflatten(-1, (4, 8)).flip(-1).flatten(1)
    ours, other = (moe_fused_topk(values, torch.zeros(32), None, None, 4, 1, 8, 8)[1] for values in (x, mirrored))
    np.testing.assert_array_equal(ours // 8, other // 8)
