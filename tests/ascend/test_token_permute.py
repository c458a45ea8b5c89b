"""npu_moe_token_permute and npu_moe_token_unpermute against the specification, and as each other's inverse."""

from typing import Any

import cases
import golden_rows as golden
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moegate import ascend


def test_the_documented_examples() -> None:
    tokens = torch.tensor([[1, 1], [2, 2], [3, 3], [4, 4]], dtype=torch.float16)
    indices = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 0]], dtype=torch.int32)
    rows, sorted_indices = ascend.npu_moe_token_permute(tokens, indices, strict=True)
    assert rows[:, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert sorted_indices.tolist() == [0, 4, 5, 1, 2, 6, 7, 3] and sorted_indices.dtype == torch.int32
    assert ascend.npu_moe_token_permute(tokens, indices, num_out_tokens=4)[0][:, 0].tolist() == [1, 2, 3, 4]
    probs = torch.ones((4, 2), dtype=torch.float16) / 2
    assert torch.equal(ascend.npu_moe_token_unpermute(rows, sorted_indices, probs=probs, strict=True), tokens)
    alone = ascend.npu_moe_token_unpermute(rows[:4], torch.arange(4, dtype=torch.int32))
    assert torch.equal(alone, tokens)


@pytest.mark.parametrize("dtype", (*cases.DTYPES, torch.int8), ids=str)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_permute(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    num_tokens, top_k, width, num_experts = shape
    generator = np.random.default_rng(1)
    tokens = cases.random_rows(generator, num_tokens, width, dtype=dtype)
    indices = cases.random_experts(generator, num_tokens, top_k, num_experts)
    num_slots = num_tokens * top_k
    for given_indices in (indices, indices.long(), indices[:, 0]):
        for num_out in (None, 0, 1, -1, num_slots, num_slots + 5):
            rows, index = ascend.npu_moe_token_permute(tokens, given_indices, num_out)
            wanted = golden.token_permute(cases.widened(tokens), given_indices.numpy(), num_out)
            assert cases.same_bits(rows, wanted[0]) and rows.dtype == dtype
            assert cases.same_bits(index, wanted[1])


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_unpermute(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    num_tokens, top_k, width, _ = shape
    generator = np.random.default_rng(2)
    num_slots = num_tokens * top_k
    rows = cases.random_rows(generator, num_slots, width, dtype=dtype)
    index = torch.from_numpy(generator.permutation(num_slots).astype(np.int32))
    for probs in (None, *(cases.random_rows(generator, num_tokens, top_k, dtype=d) for d in (dtype, torch.float32))):
        found = ascend.npu_moe_token_unpermute(rows, index, probs)
        wanted = golden.token_unpermute(cases.widened(rows), index.numpy(), cases.optional(probs))
        assert found.dtype == dtype and cases.same_bits(found, wanted)


@cases.thorough
@given(st.data())
def test_any_rows_any_places(data: st.DataObject) -> None:
    num_tokens, top_k, num_rows = (data.draw(st.integers(*bounds)) for bounds in ((0, 6), (1, 4), (0, 9)))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # Repeated places, places that were cut off, and -1, which frameworks pass and the device does not define.
    index = torch.from_numpy(generator.integers(-1, num_rows + 3, num_tokens * top_k).astype(np.int32))
    dtype = data.draw(st.sampled_from(cases.DTYPES))
    rows = cases.random_rows(generator, num_rows, 3, dtype=dtype)
    probs = cases.random_rows(generator, num_tokens, top_k)
    found = ascend.npu_moe_token_unpermute(rows, index, probs)
    assert cases.same_bits(found, golden.token_unpermute(cases.widened(rows), index.numpy(), probs.numpy()))


@pytest.mark.parametrize("num_out", (None, 7, -3))
def test_there_and_back_is_k_times_the_token(num_out: int | None) -> None:
    generator = np.random.default_rng(3)
    tokens, indices = cases.random_rows(generator, 6, 4), cases.random_experts(generator, 6, 2, 5)
    rows, index = ascend.npu_moe_token_permute(tokens, indices, num_out)
    kept = (index.view(6, 2) < len(rows)).sum(dim=1, keepdim=True)
    assert torch.equal(ascend.npu_moe_token_unpermute(rows, index, torch.ones(6, 2)), kept * tokens)


def test_gradients_against_finite_differences_and_formulas() -> None:
    generator = np.random.default_rng(4)
    tokens = cases.random_rows(generator, 5, 3, dtype=torch.float64).requires_grad_()
    indices = cases.random_experts(generator, 5, 2, 4)
    for num_out in (None, 6):
        run = lambda tokens: ascend.npu_moe_token_permute(tokens, indices, num_out)[0]  # noqa: B023, E731
        assert torch.autograd.gradcheck(run, tokens)
    rows, index = ascend.npu_moe_token_permute(tokens, indices)
    grad = torch.randn_like(rows)
    (found,) = torch.autograd.grad(rows, tokens, grad)
    assert torch.allclose(found, grad[index.long()].view(5, 2, 3).sum(1), atol=1e-12)

    rows = cases.random_rows(generator, 10, 3, dtype=torch.float64).requires_grad_()
    probs = cases.random_rows(generator, 5, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, p: ascend.npu_moe_token_unpermute(r, index, p), (rows, probs))
    out = ascend.npu_moe_token_unpermute(rows, index, probs)
    grad = torch.randn_like(out)
    grad_rows, grad_probs = torch.autograd.grad(out, (rows, probs), grad)
    wanted_rows = torch.zeros_like(rows)
    wanted_rows[index.long()] = (grad[:, None] * probs[..., None]).detach().reshape(10, 3)
    assert torch.allclose(grad_rows, wanted_rows, atol=1e-12)
    assert torch.allclose(grad_probs, (rows[index.long()].view(5, 2, 3) * grad[:, None]).sum(-1), atol=1e-12)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_padded_mode(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(5)
    tokens = cases.random_rows(generator, 5, 3, dtype=dtype).requires_grad_()
    indices = cases.random_experts(generator, 4, 3, 5)
    rows, index = ascend.npu_moe_token_permute(tokens, indices, padded_mode=True)
    assert torch.equal(rows, tokens[indices.reshape(-1).long()]) and torch.equal(index, indices.reshape(-1))
    probs = cases.random_rows(generator, 4, 3, dtype=dtype)
    found = ascend.npu_moe_token_unpermute(rows, index, probs, padded_mode=True, restore_shape=[5, 3])
    wanted = np.zeros((5, 3), np.promote_types(cases.widened(rows).dtype, np.float32))
    for row, token in enumerate(index.tolist()):
        wanted[token] += cases.widened(rows)[row] * cases.widened(probs).reshape(-1)[row]
    assert cases.same_bits(found, wanted)
    found.sum().backward()
    assert tokens.grad is not None and tokens.grad.shape == tokens.shape


TOKENS, INDICES = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int32)


def test_arguments_of_permute_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"tokens must be \[tokens, hidden size\]"):
        ascend.npu_moe_token_permute(torch.zeros(3), INDICES)
    with pytest.raises(ValueError, match=r"indices must be \[3, experts per token\], got \(2, 2\)"):
        ascend.npu_moe_token_permute(TOKENS, INDICES[:2])
    with pytest.raises(TypeError, match="indices must be int32"):
        ascend.npu_moe_token_permute(TOKENS, INDICES.float())
    with pytest.raises(TypeError, match="num_out_tokens must be an integer"):
        ascend.npu_moe_token_permute(TOKENS, INDICES, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens, in padded mode"):
        ascend.npu_moe_token_permute(TOKENS, INDICES + 3, padded_mode=True)


def test_arguments_of_unpermute_that_do_not_fit() -> None:
    rows, index = torch.zeros(6, 2), torch.arange(6, dtype=torch.int32)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"permuted_tokens": torch.zeros(6)}, ValueError, r"permuted_tokens must be \[rows, hidden size\]"),
        ({"permuted_tokens": rows.int()}, TypeError, "must be a floating-point tensor, got torch.int32"),
        ({"sorted_indices": index[None]}, ValueError, r"sorted_indices must be \[slots\]"),
        ({"probs": torch.zeros(2, 2)}, ValueError, "must have one value per slot, 6 in all"),
        ({"probs": torch.zeros(6)}, ValueError, r"probs must be \[tokens, experts per token\]"),
        ({"restore_shape": [3, 2]}, ValueError, "restore_shape belongs to padded_mode=True"),
        ({"padded_mode": True}, ValueError, "padded_mode=True needs restore_shape"),
        ({"padded_mode": True, "restore_shape": [3, 5]}, ValueError, r"restore_shape must be \[tokens, 2\]"),
        ({"padded_mode": True, "restore_shape": [3, 2]}, ValueError, "values from 0 to 2; got values from 0 to 5"),
    ]
    for changed, error, message in wrong:
        with pytest.raises(error, match=message):
            ascend.npu_moe_token_unpermute(**{"permuted_tokens": rows, "sorted_indices": index} | changed)


def test_limits_of_the_hardware() -> None:
    with pytest.raises(RuntimeError, match="tokens as float16, bfloat16, float32"):
        ascend.npu_moe_token_permute(TOKENS.double(), INDICES, strict=True)
    with pytest.raises(RuntimeError, match="padded_mode=False, got True"):
        ascend.npu_moe_token_permute(TOKENS, INDICES, padded_mode=True, strict=True)
    with pytest.raises(RuntimeError, match="indices from 0 to 16777214"):
        ascend.npu_moe_token_permute(TOKENS, INDICES - 1, strict=True)
    assert ascend.npu_moe_token_permute(TOKENS, INDICES - 1)[1].tolist() == list(range(6))
    rows, index = torch.zeros(513, 1), torch.arange(513, dtype=torch.int32)
    assert ascend.npu_moe_token_unpermute(rows, index, torch.zeros(1, 513)).shape == (1, 1)
    with pytest.raises(RuntimeError, match="at most 512 experts per token, got 513"):
        ascend.npu_moe_token_unpermute(rows, index, torch.zeros(1, 513), strict=True)
    with pytest.raises(RuntimeError, match="sorted_indices as int32"):
        ascend.npu_moe_token_unpermute(rows, index.long(), strict=True)
    with pytest.raises(RuntimeError, match="a row for every slot, got -1"):
        ascend.npu_moe_token_unpermute(rows, index - 1, strict=True)
    with pytest.raises(RuntimeError, match="padded_mode=False"):
        ascend.npu_moe_token_unpermute(rows, index, padded_mode=True, restore_shape=[513, 1], strict=True)
