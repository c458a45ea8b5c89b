"""npu_moe_init_routing and npu_moe_compute_expert_tokens against the specification."""

import cases
import golden_rows as golden
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moegate import ascend


def column_row_idx(num_tokens: int, top_k: int) -> torch.Tensor:
    """What npu_moe_gating_top_k_softmax gives: slot j of token i is number j · N + i."""
    return torch.arange(num_tokens * top_k, dtype=torch.int32).view(top_k, num_tokens).t().contiguous()


def test_the_documented_example() -> None:
    x = torch.tensor([[0.1] * 4, [0.2] * 4, [0.3] * 4])
    row_idx = torch.tensor([[0, 3], [1, 4], [2, 5]], dtype=torch.int32)
    expert_idx = torch.tensor([[1, 2], [0, 1], [0, 2]], dtype=torch.int32)
    rows, places, experts = ascend.npu_moe_init_routing(x, row_idx, expert_idx, 3, strict=True)
    assert torch.equal(rows, x[[1, 2, 0, 1, 0, 2]])
    assert places.tolist() == [2, 0, 1, 4, 3, 5] and experts.tolist() == [0, 0, 1, 1, 2, 2]
    assert (places.dtype, experts.dtype) == (torch.int32, torch.int32)


@pytest.mark.parametrize("dtype", (*cases.DTYPES, torch.int8), ids=str)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_rows_places_and_experts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    num_tokens, top_k, width, num_experts = shape
    generator = np.random.default_rng(1)
    x = cases.random_rows(generator, num_tokens, width, dtype=dtype)
    expert_idx = cases.random_experts(generator, num_tokens, top_k, num_experts)
    row_idx = column_row_idx(num_tokens, top_k)
    for active_num in {0, 1, num_tokens - 1, num_tokens, num_tokens + 3} - {-1}:
        found = ascend.npu_moe_init_routing(x, row_idx, expert_idx, active_num)
        wanted = golden.init_routing(cases.widened(x), row_idx.numpy(), expert_idx.numpy(), active_num)
        assert found[0].dtype == dtype
        assert all(cases.same_bits(f, w) for f, w in zip(found, wanted, strict=True))


@cases.thorough
@given(st.integers(1, 9), st.integers(1, 5), st.integers(-3, 4), st.integers(0, 12), st.integers(0, 1000))
def test_any_ids_any_order_of_numbers(num_tokens: int, top_k: int, least: int, active_num: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = cases.random_rows(generator, num_tokens, 2)
    expert_idx = torch.from_numpy(generator.integers(least, least + 5, (num_tokens, top_k)))
    row_idx = torch.from_numpy(generator.permutation(num_tokens * top_k).reshape(num_tokens, top_k))
    found = ascend.npu_moe_init_routing(x, row_idx, expert_idx, active_num)
    wanted = golden.init_routing(x.numpy(), row_idx.numpy(), expert_idx.numpy(), active_num)
    assert all(cases.same_bits(f, w) for f, w in zip(found, wanted, strict=True))


def test_repeated_numbers_give_their_token_twice_and_minus_one_for_what_is_missing() -> None:
    x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    row_idx = torch.tensor([[0, 0], [1, 3]])
    rows, places, _ = ascend.npu_moe_init_routing(x, row_idx, torch.tensor([[0, 1], [2, 3]]), 2)
    assert rows.flatten().tolist() == [1.0, 1.0, 2.0, 2.0]
    assert places.tolist()[2] == -1 and places.tolist()[3] == 3
    rows.sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [2.0, 2.0]


def test_the_gradient_sums_a_tokens_active_rows() -> None:
    generator = np.random.default_rng(3)
    x = cases.random_rows(generator, 5, 3, dtype=torch.float64).requires_grad_()
    expert_idx, row_idx = cases.random_experts(generator, 5, 2, 4), column_row_idx(5, 2)
    assert torch.autograd.gradcheck(lambda x: ascend.npu_moe_init_routing(x, row_idx, expert_idx, 4)[0], x)
    rows, places, _ = ascend.npu_moe_init_routing(x, row_idx, expert_idx, 4)
    grad = torch.randn_like(rows)
    rows.backward(grad)
    wanted = torch.zeros_like(x)
    for i in range(5):
        for j in range(2):
            place = int(places[j * 5 + i])
            if place < 8:
                wanted[i] += grad[place]
    assert x.grad is not None and torch.allclose(x.grad, wanted, rtol=0, atol=1e-12)


def test_arguments_that_do_not_fit() -> None:
    x, index = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"x must be \[tokens, hidden size\], got \(3,\)"):
        ascend.npu_moe_init_routing(torch.zeros(3), index, index, 3)
    with pytest.raises(ValueError, match=r"expert_idx must be \[3, experts per token\], got \(2, 2\)"):
        ascend.npu_moe_init_routing(x, index, index[:2], 3)
    with pytest.raises(ValueError, match=r"row_idx must be \[3, 2\], got \(3, 1\)"):
        ascend.npu_moe_init_routing(x, index[:, :1], index, 3)
    with pytest.raises(TypeError, match=r"expert_idx must be int32.*float32"):
        ascend.npu_moe_init_routing(x, index, index.float(), 3)
    with pytest.raises(ValueError, match="active_num must be at least 0, got -1"):
        ascend.npu_moe_init_routing(x, index, index, -1)
    with pytest.raises(ValueError, match="row_idx must hold the numbers of the slots, so values from 0 to 5"):
        ascend.npu_moe_init_routing(x, index + 6, index, 3)
    with pytest.raises(TypeError, match="x must be a tensor"):
        ascend.npu_moe_init_routing([[1.0]], index, index, 3)  # type: ignore[arg-type]


def test_limits_of_the_hardware() -> None:
    x, index = torch.zeros(3, 2), column_row_idx(3, 2)
    ascend.npu_moe_init_routing(x.double(), index, index, 3)
    with pytest.raises(RuntimeError, match=r"161002.*npu_moe_init_routing takes x as float16, bfloat16, float32, got"):
        ascend.npu_moe_init_routing(x.double(), index, index, 3, strict=True)
    with pytest.raises(RuntimeError, match="expert_idx as int32"):
        ascend.npu_moe_init_routing(x, index, index.long(), 3, strict=True)
    with pytest.raises(RuntimeError, match=r"561002.*sorts them as float32, got 16777217"):
        ascend.npu_moe_init_routing(x, index, index * 0 - (2**24 + 1), 3, strict=True)


@pytest.mark.parametrize("num_experts", (0, 1, 5, 16))
def test_expert_tokens_are_cumulative(num_experts: int) -> None:
    generator = np.random.default_rng(num_experts)
    for size in (0, 1, 7, 64):
        experts = np.sort(generator.integers(0, max(1, num_experts) + 2, size)).astype(np.int32)
        found = ascend.npu_moe_compute_expert_tokens(torch.from_numpy(experts), num_experts)
        assert found.dtype == torch.int32
        assert cases.same_bits(found, golden.compute_expert_tokens(experts, num_experts))


def test_expert_tokens_of_the_documented_example() -> None:
    experts = torch.tensor([3, 3, 4, 5, 6, 7], dtype=torch.int32)
    assert ascend.npu_moe_compute_expert_tokens(experts, 5, strict=True).tolist() == [0, 0, 0, 2, 3]


def test_limits_of_expert_tokens() -> None:
    experts = torch.tensor([3, 3, 4], dtype=torch.int32)
    assert ascend.npu_moe_compute_expert_tokens(experts, 4096).shape == (4096,)
    with pytest.raises(RuntimeError, match="takes 1 to 2048 experts, got 4096"):
        ascend.npu_moe_compute_expert_tokens(experts, 4096, strict=True)
    with pytest.raises(RuntimeError, match="ascending"):
        ascend.npu_moe_compute_expert_tokens(experts.flip(0), 4, strict=True)
    with pytest.raises(RuntimeError, match="as int32"):
        ascend.npu_moe_compute_expert_tokens(experts.long(), 4, strict=True)
    with pytest.raises(ValueError, match=r"must be \[rows\], got \(1, 3\)"):
        ascend.npu_moe_compute_expert_tokens(experts[None], 4)
