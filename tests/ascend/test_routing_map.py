"""Permutation from a routing map, and its way back, against the specification."""

import cases
import golden_rows as golden
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moegate import ascend

Array = cases.Array


def map_of(generator: np.random.Generator, num_tokens: int, num_experts: int, top_k: int, exact: bool = True) -> Tensor:
    """``[N, E]`` bool with ``top_k`` experts per token, or at most so many."""
    chosen = np.zeros((num_tokens, num_experts), bool)
    for token in range(num_tokens):
        count = top_k if exact else generator.integers(0, top_k + 1)
        chosen[token, generator.permutation(num_experts)[:count]] = True
    return torch.from_numpy(chosen)


def test_the_documented_examples() -> None:
    tokens = torch.tensor([[0.1] * 4, [0.2] * 4, [0.3] * 4], dtype=torch.float16)
    routing_map = torch.ones((3, 2), dtype=torch.int8)
    rows, none, index = ascend.npu_moe_token_permute_with_routing_map(
        tokens, routing_map, num_out_tokens=6, strict=True
    )
    assert torch.equal(rows, tokens.repeat(2, 1)) and none is None and index.tolist() == [0, 3, 1, 4, 2, 5]
    probs = torch.tensor([[0.5, 0.3], [0.4, 0.6], [0.2, 0.8]], dtype=torch.float16)
    permuted = ascend.npu_moe_token_permute_with_routing_map(tokens, routing_map, probs=probs, num_out_tokens=6)[1]
    assert permuted is not None and torch.equal(permuted, probs.t().reshape(-1))
    rows, _, index = ascend.npu_moe_token_permute_with_routing_map(
        tokens, routing_map, num_out_tokens=4, drop_and_pad=True
    )
    assert rows.shape == (4, 4) and index.tolist() == [0, 1, 0, 1]

    rows = torch.tensor([[1.0] * 4, [2.0] * 4], dtype=torch.float16)
    index, routing_map = torch.tensor([0, 1], dtype=torch.int32), torch.eye(2, dtype=torch.int8)
    found = ascend.npu_moe_token_unpermute_with_routing_map(
        rows, index, [2, 4], probs=torch.eye(2, dtype=torch.float16), routing_map=routing_map, strict=True
    )
    assert torch.equal(found, rows)
    found = ascend.npu_moe_token_unpermute_with_routing_map(
        rows, index, [2, 4], probs=torch.eye(2, dtype=torch.float16) / 2, routing_map=routing_map, drop_and_pad=True
    )
    assert found[:, 0].tolist() == [0.5, 1.0]


SHAPES = ((0, 3, 4, 1), (1, 1, 1, 1), (5, 4, 3, 2), (7, 4, 2, 4), (6, 8, 5, 3), (4, 3, 0, 2), (3, 5, 2, 0))
"""``(N, E, H, K)``."""


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("exact", (True, False), ids=("K each", "up to K each"))
def test_sorted_there_and_back(shape: tuple[int, ...], dtype: torch.dtype, exact: bool) -> None:
    num_tokens, num_experts, width, top_k = shape
    generator = np.random.default_rng(1)
    tokens = cases.random_rows(generator, num_tokens, width, dtype=dtype)
    routing_map = map_of(generator, num_tokens, num_experts, top_k, exact)
    probs = cases.random_rows(generator, num_tokens, num_experts, dtype=dtype)
    for given_map in (routing_map, routing_map.to(torch.int8)):
        rows, row_probs, index = ascend.npu_moe_token_permute_with_routing_map(
            tokens, given_map, probs=probs, num_out_tokens=top_k * num_tokens
        )
        wanted = golden.permute_with_map(
            cases.widened(tokens), routing_map.numpy(), cases.widened(probs), top_k * num_tokens
        )
        assert row_probs is not None and wanted[1] is not None
        assert cases.same_bits(rows, wanted[0]) and cases.same_bits(row_probs, wanted[1])
        assert cases.same_bits(index, wanted[2]) and (rows.dtype, row_probs.dtype) == (dtype, dtype)
        for used in (None, probs):
            found = ascend.npu_moe_token_unpermute_with_routing_map(
                rows, index, [num_tokens, width], probs=used, routing_map=given_map if used is not None else None
            )
            wanted_out = golden.unpermute_with_map(
                cases.widened(rows), index.numpy(), num_tokens, cases.optional(used), routing_map.numpy()
            )
            assert found.dtype == dtype and cases.same_bits(found, wanted_out)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_drop_and_pad_there_and_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    num_tokens, num_experts, width, top_k = shape
    generator = np.random.default_rng(2)
    tokens = cases.random_rows(generator, num_tokens, width, dtype=dtype)
    routing_map = map_of(generator, num_tokens, num_experts, top_k, exact=False)
    probs = cases.random_rows(generator, num_tokens, num_experts, dtype=dtype) * routing_map
    for capacity in sorted({0, min(1, num_tokens), num_tokens}):
        rows, row_probs, ids = ascend.npu_moe_token_permute_with_routing_map(
            tokens, routing_map, probs=probs, num_out_tokens=capacity * num_experts, drop_and_pad=True
        )
        wanted = golden.permute_drop_and_pad(
            cases.widened(tokens), routing_map.numpy(), cases.widened(probs), capacity * num_experts
        )
        assert row_probs is not None and wanted[1] is not None
        assert cases.same_bits(rows, wanted[0]) and cases.same_bits(row_probs, wanted[1])
        assert cases.same_bits(ids, wanted[2])
        for used in (None, probs):
            found = ascend.npu_moe_token_unpermute_with_routing_map(
                rows, ids, [num_tokens, width], probs=used, drop_and_pad=True
            )
            wanted_out = golden.unpermute_drop_and_pad(
                cases.widened(rows), ids.numpy(), num_tokens, cases.optional(used)
            )
            assert found.dtype == dtype and cases.same_bits(found, wanted_out)


@cases.brief
@given(st.data())
def test_any_map(data: st.DataObject) -> None:
    num_tokens, num_experts = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 6))
    top_k = data.draw(st.integers(0, num_experts))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    tokens = cases.random_rows(generator, num_tokens, 2)
    routing_map = map_of(generator, num_tokens, num_experts, top_k, exact=False)
    probs = cases.random_rows(generator, num_tokens, num_experts)
    rows, row_probs, index = ascend.npu_moe_token_permute_with_routing_map(
        tokens, routing_map, probs=probs, num_out_tokens=top_k * num_tokens
    )
    weighted = ascend.npu_moe_token_unpermute_with_routing_map(
        rows, index, tokens.shape, probs=probs, routing_map=routing_map
    )
    # The probabilities of the rows are those of the slots: weighting before or after is the same.
    assert row_probs is not None
    before = ascend.npu_moe_token_unpermute_with_routing_map(rows * row_probs[:, None], index, tokens.shape)
    assert torch.equal(weighted, before)
    assert torch.allclose(weighted, (probs * routing_map).sum(1, keepdim=True) * tokens, atol=1e-5)


def test_the_order_of_slots_is_that_of_a_stable_sort_of_token_ids() -> None:
    # The definition of the specification, which holds where every token has K experts.
    routing_map = map_of(np.random.default_rng(3), 9, 6, 3)
    index = ascend.npu_moe_token_permute_with_routing_map(torch.zeros(9, 1), routing_map, num_out_tokens=27)[2]
    token_ids = torch.arange(9).expand(6, -1).masked_select(routing_map.t())
    assert torch.equal(index.long(), torch.argsort(token_ids, stable=True))


@pytest.mark.parametrize("drop_and_pad", (False, True))
def test_gradients_against_finite_differences(drop_and_pad: bool) -> None:
    generator = np.random.default_rng(4)
    tokens = cases.random_rows(generator, 5, 3, dtype=torch.float64).requires_grad_()
    probs = cases.random_rows(generator, 5, 4, dtype=torch.float64).requires_grad_()
    routing_map = map_of(generator, 5, 4, 2)
    num_out = 12 if drop_and_pad else 10

    def there(tokens: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        rows, row_probs, _ = ascend.npu_moe_token_permute_with_routing_map(
            tokens, routing_map, probs=probs, num_out_tokens=num_out, drop_and_pad=drop_and_pad
        )
        assert row_probs is not None
        return rows, row_probs

    assert torch.autograd.gradcheck(there, (tokens, probs))
    _, _, index = ascend.npu_moe_token_permute_with_routing_map(
        tokens, routing_map, num_out_tokens=num_out, drop_and_pad=drop_and_pad
    )
    rows = cases.random_rows(generator, num_out, 3, dtype=torch.float64).requires_grad_()

    def back(rows: Tensor, probs: Tensor) -> Tensor:
        return ascend.npu_moe_token_unpermute_with_routing_map(
            rows, index, [5, 3], probs=probs, routing_map=routing_map, drop_and_pad=drop_and_pad
        )

    assert torch.autograd.gradcheck(back, (rows, probs))


def test_num_out_tokens_is_by_default_one_row_per_token() -> None:
    rows, _, index = ascend.npu_moe_token_permute_with_routing_map(torch.arange(3.0)[:, None], torch.eye(3) > 0)
    assert rows.flatten().tolist() == [0.0, 1.0, 2.0] and index.tolist() == [0, 1, 2]


TOKENS, MAP = torch.zeros(3, 2), torch.ones(3, 4, dtype=torch.bool)


def test_arguments_that_do_not_fit() -> None:
    permute, unpermute = (
        ascend.npu_moe_token_permute_with_routing_map,
        ascend.npu_moe_token_unpermute_with_routing_map,
    )
    with pytest.raises(ValueError, match=r"routing_map must be \[3, experts\], got \(2, 4\)"):
        permute(TOKENS, MAP[:2])
    with pytest.raises(TypeError, match=r"routing_map must be bool or int8 of 0 and 1, got torch\.float32"):
        permute(TOKENS, MAP.float())
    with pytest.raises(ValueError, match=r"probs must be \[3, 4\]"):
        permute(TOKENS, MAP, probs=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="has 4 experts, and there is room for 1 per token"):
        permute(TOKENS, MAP)
    with pytest.raises(ValueError, match="num_out_tokens must be at most 3 tokens · 4 experts, got 13"):
        permute(TOKENS, MAP, num_out_tokens=13)
    with pytest.raises(ValueError, match="num_out_tokens must be at least 0"):
        permute(TOKENS, MAP, num_out_tokens=-1)
    rows, index = torch.zeros(12, 2), torch.arange(12, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"restore_shape must be \[tokens, 2\], got \[3, 3\]"):
        unpermute(rows, index, [3, 3])
    with pytest.raises(ValueError, match="12 slots, no multiple of 5 tokens"):
        unpermute(rows, index, [5, 2])
    with pytest.raises(ValueError, match="pass routing_map too"):
        unpermute(rows, index, [3, 2], probs=torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"probs must be \[3, experts\]"):
        unpermute(rows, index, [3, 2], probs=torch.zeros(4, 4), routing_map=MAP)
    with pytest.raises(ValueError, match=r"probs must be \[3, 4\]"):
        unpermute(rows, index, [3, 2], probs=torch.zeros(3, 5), routing_map=MAP)
    with pytest.raises(ValueError, match="12 rows, no multiple of 5 experts"):
        unpermute(rows, index % 3, [3, 2], probs=torch.zeros(3, 5), drop_and_pad=True)
    with pytest.raises(ValueError, match="must hold tokens, so values from 0 to 2"):
        unpermute(rows, index, [3, 2], drop_and_pad=True)
    with pytest.raises(ValueError, match="must hold tokens, so values from 0 to 2; got values from -5"):
        unpermute(rows, index % 3 - 5, [3, 2], probs=torch.zeros(3, 4), drop_and_pad=True)


def test_limits_of_the_hardware() -> None:
    permute, unpermute = (
        ascend.npu_moe_token_permute_with_routing_map,
        ascend.npu_moe_token_unpermute_with_routing_map,
    )
    with pytest.raises(RuntimeError, match="tokens as float16, bfloat16, float32"):
        permute(TOKENS.double(), MAP, num_out_tokens=12, strict=True)
    with pytest.raises(RuntimeError, match="probs in the type of the tokens"):
        permute(TOKENS, MAP, probs=torch.zeros(3, 4).half(), num_out_tokens=12, strict=True)
    permute(TOKENS.bfloat16(), MAP, probs=torch.zeros(3, 4), num_out_tokens=12, strict=True)
    uneven = MAP.clone()
    uneven[0, 0] = False
    permute(TOKENS, uneven, num_out_tokens=12)
    with pytest.raises(RuntimeError, match=r"exactly num_out_tokens // tokens = 4 experts.*got \[3, 4\]"):
        permute(TOKENS, uneven, num_out_tokens=12, strict=True)
    wide_map = torch.ones(1, 512, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="fewer than 512 experts per token, got 512"):
        permute(TOKENS[:1], wide_map, num_out_tokens=512, strict=True)
    rows, index = torch.zeros(513, 1), torch.arange(513, dtype=torch.int32)
    assert unpermute(rows, index, [1, 1]).shape == (1, 1)
    with pytest.raises(RuntimeError, match="at most 512 experts per token, got 513"):
        unpermute(rows, index, [1, 1], strict=True)
    with pytest.raises(RuntimeError, match="probs in the type of the rows"):
        unpermute(
            rows.half(), index, [513, 1], probs=torch.zeros(513, 1), routing_map=torch.ones(513, 1) > 0, strict=True
        )
    with pytest.raises(RuntimeError, match="no more slots per token than experts, got 2"):
        unpermute(torch.zeros(4, 1), index[:4] % 2, [2, 1], probs=torch.zeros(2, 1), drop_and_pad=True, strict=True)
    with pytest.raises(RuntimeError, match="a capacity up to the number of tokens, got 3"):
        unpermute(torch.zeros(3, 1), index[:3] % 2, [2, 1], probs=torch.zeros(2, 1), drop_and_pad=True, strict=True)
