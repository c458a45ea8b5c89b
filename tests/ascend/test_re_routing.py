"""npu_moe_re_routing against the specification."""

import cases
import golden_rows as golden
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moegate import ascend


@pytest.mark.parametrize("dtype", (*cases.DTYPES, torch.int8), ids=str)
@pytest.mark.parametrize("counts_dtype", (torch.int32, torch.int64), ids=str)
@pytest.mark.parametrize("shape", ((1, 1), (1, 4), (4, 1), (3, 5), (16, 16)), ids=str)
def test_rows_scales_index_and_counts(shape: tuple[int, int], counts_dtype: torch.dtype, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(1)
    counts = torch.from_numpy(generator.integers(1, 4, shape)).to(counts_dtype)
    num_rows = int(counts.sum())
    tokens, scales = cases.random_rows(generator, num_rows, 3, dtype=dtype), cases.random_rows(generator, num_rows)
    strict = dtype in (torch.float16, torch.bfloat16, torch.int8)
    rows, row_scales, index, per_expert = ascend.npu_moe_re_routing(
        tokens, counts, per_token_scales=scales, strict=strict
    )
    source = torch.from_numpy(golden.re_routing(counts.numpy()))
    assert torch.equal(rows, tokens[source]) and torch.equal(row_scales, scales[source])
    assert cases.same_bits(index, source) and index.dtype == torch.int32
    assert torch.equal(per_expert, counts.sum(0, dtype=counts_dtype)) and per_expert.dtype == counts_dtype


@cases.thorough
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 1000))
def test_any_counts_also_none(num_ranks: int, num_experts: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = torch.from_numpy(generator.integers(0, 4, (num_ranks, num_experts)))
    tokens = cases.random_rows(generator, int(counts.sum()), 2)
    rows, row_scales, index, per_expert = ascend.npu_moe_re_routing(tokens, counts, expert_token_num_type=0)
    source = torch.from_numpy(golden.re_routing(counts.numpy()))
    assert torch.equal(rows, tokens[source]) and torch.equal(index.long(), source) and not row_scales.any()
    assert torch.equal(per_expert, counts.sum(0).cumsum(0))
    scatter = ascend.npu_moe_re_routing(tokens, counts, idx_type=1)[2]
    assert torch.equal(scatter.long(), torch.argsort(source))


def test_gradients_against_finite_differences() -> None:
    counts = torch.tensor([[1, 2], [0, 3]])
    tokens = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    scales = torch.randn(6, dtype=torch.float64, requires_grad=True)
    run = lambda t, s: ascend.npu_moe_re_routing(t, counts, per_token_scales=s)[:2]  # noqa: E731
    assert torch.autograd.gradcheck(run, (tokens, scales))


def test_arguments_that_do_not_fit() -> None:
    tokens, counts = torch.zeros(4, 2), torch.tensor([[1, 1], [0, 2]])
    with pytest.raises(ValueError, match=r"tokens must be \[rows, hidden size\]"):
        ascend.npu_moe_re_routing(torch.zeros(4), counts)
    with pytest.raises(ValueError, match=r"must be \[ranks, experts\], got \(2,\)"):
        ascend.npu_moe_re_routing(tokens, counts[0])
    with pytest.raises(TypeError, match=r"must be int32, as the device takes it, or int64; got torch\.float32"):
        ascend.npu_moe_re_routing(tokens, counts.float())
    with pytest.raises(ValueError, match="counts 3 rows, but there are 4"):
        ascend.npu_moe_re_routing(tokens, torch.tensor([[1, 1], [0, 1]]))
    with pytest.raises(ValueError, match="must hold numbers of rows"):
        ascend.npu_moe_re_routing(tokens, torch.tensor([[5, -1], [0, 0]]))
    with pytest.raises(ValueError, match=r"per_token_scales must be \[4\], got \(3,\)"):
        ascend.npu_moe_re_routing(tokens, counts, per_token_scales=torch.zeros(3))
    with pytest.raises(ValueError, match="idx_type must be one of 0, 1; got 2"):
        ascend.npu_moe_re_routing(tokens, counts, idx_type=2)
    with pytest.raises(ValueError, match="expert_token_num_type must be one of 0, 1; got 2"):
        ascend.npu_moe_re_routing(tokens, counts, expert_token_num_type=2)


def test_limits_of_the_hardware() -> None:
    tokens, counts = torch.zeros(4, 2, dtype=torch.float16), torch.ones(2, 2, dtype=torch.int32)
    ascend.npu_moe_re_routing(tokens, counts, strict=True)
    with pytest.raises(RuntimeError, match="tokens as float16, bfloat16, int8"):
        ascend.npu_moe_re_routing(tokens.float(), counts, strict=True)
    with pytest.raises(RuntimeError, match="per_token_scales as float32"):
        ascend.npu_moe_re_routing(tokens, counts, per_token_scales=tokens[:, 0], strict=True)
    with pytest.raises(RuntimeError, match="a hidden size from 1 to 16383, got 16384"):
        ascend.npu_moe_re_routing(tokens.new_zeros(4, 16384), counts, strict=True)
    with pytest.raises(RuntimeError, match="expert_token_num_type=1, got 0"):
        ascend.npu_moe_re_routing(tokens, counts, expert_token_num_type=0, strict=True)
    with pytest.raises(RuntimeError, match="idx_type=0"):
        ascend.npu_moe_re_routing(tokens, counts, idx_type=1, strict=True)
    with pytest.raises(RuntimeError, match="a row from every rank for every expert, got 0"):
        ascend.npu_moe_re_routing(tokens, torch.tensor([[2, 0], [1, 1]], dtype=torch.int32), strict=True)
