"""The launches of ``wide_linear`` and its gradient on devices that Triton serves."""

import torch
import triton
from torch import Tensor

from moegate.ops.gpu.sizes import power_of_two
from moegate.ops.grouped_mm.gpu_sizes import machine_of
from moegate.ops.wide_linear.gpu_kernel import (
    few_tokens_kernel,
    hidden_gradient_kernel,
    many_tokens_kernel,
    weight_gradient_kernel,
)
from moegate.ops.wide_linear.operators import check_gradient, check_matrices

_FEW_TOKENS = 32
"""Up to these, reading the matrix for each is better than filling tiles; it lies in the cache."""
_TOKENS_OF_A_PART = 1024
_MOST_PARTS = 32
"""Each part is a float32 gradient of its own: with many tokens, parts are longer instead of more."""


def wide_linear(hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """``moegate::wide_linear``."""
    check_matrices(hidden_TD, weight_ED)
    (num_tokens, hidden_size), num_outputs = hidden_TD.shape, weight_ED.shape[0]
    out_TE = hidden_TD.new_empty(num_tokens, num_outputs, dtype=torch.float32)
    if out_TE.numel() == 0:
        return out_TE
    strides = (*hidden_TD.stride(), *weight_ED.stride())
    if num_tokens <= _FEW_TOKENS:
        block_d = min(2048, triton.next_power_of_2(max(1, hidden_size)))
        block_e = min(4096 // block_d, triton.next_power_of_2(num_outputs))
        few_tokens_kernel[triton.cdiv(num_outputs, block_e), num_tokens](
            hidden_TD, weight_ED, out_TE, num_outputs, hidden_size, *strides,
            BLOCK_E=block_e, BLOCK_D=block_d, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        return out_TE
    block_e, block_d = _block(num_outputs, 128), _block(hidden_size, 64)
    in_flight = machine_of(hidden_TD.device).shared_memory // ((64 + block_e) * block_d * hidden_TD.element_size())
    many_tokens_kernel[triton.cdiv(num_tokens, 64), triton.cdiv(num_outputs, block_e)](
        hidden_TD, weight_ED, out_TE, num_tokens, num_outputs, hidden_size, *strides,
        BLOCK_T=64, BLOCK_E=block_e, BLOCK_D=block_d,
        num_warps=4, num_stages=max(1, min(4, in_flight)), enable_fp_fusion=True,
    )  # fmt: skip
    return out_TE


def wide_linear_backward(
    grad_TE: Tensor, hidden_TD: Tensor, weight_ED: Tensor, needs_hidden: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """``moegate::wide_linear_backward``."""
    check_gradient(grad_TE, hidden_TD, weight_ED)
    return (
        _hidden_gradient(grad_TE, hidden_TD, weight_ED) if needs_hidden else hidden_TD.new_empty(0),
        _weight_gradient(grad_TE, hidden_TD, weight_ED) if needs_weight else weight_ED.new_empty(0),
    )


def _hidden_gradient(grad_TE: Tensor, hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    (num_tokens, hidden_size), num_outputs = hidden_TD.shape, weight_ED.shape[0]
    out_TD = hidden_TD.new_empty(hidden_TD.shape)
    if out_TD.numel():
        block_d = _block(hidden_size, 128)
        hidden_gradient_kernel[triton.cdiv(num_tokens, 64), triton.cdiv(hidden_size, block_d)](
            grad_TE, weight_ED, out_TD, num_tokens, num_outputs, hidden_size, *grad_TE.stride(), *weight_ED.stride(),
            BLOCK_T=64, BLOCK_E=_block(num_outputs, 32), BLOCK_D=block_d,
            num_warps=4, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    return out_TD


def _weight_gradient(grad_TE: Tensor, hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """In parts of the tokens, so that all multiprocessors have some; these are added in one order."""
    (num_tokens, hidden_size), num_outputs = hidden_TD.shape, weight_ED.shape[0]
    tokens_of_part, num_parts = parts_of(num_tokens)
    parts_PED = weight_ED.new_empty(num_parts, *weight_ED.shape, dtype=torch.float32)
    if parts_PED.numel():
        block_e, block_d = _block(num_outputs, 64), _block(hidden_size, 128)
        grid = (triton.cdiv(num_outputs, block_e), triton.cdiv(hidden_size, block_d), num_parts)
        weight_gradient_kernel[grid](
            grad_TE, hidden_TD, parts_PED, num_tokens, num_outputs, hidden_size, tokens_of_part,
            *grad_TE.stride(), *hidden_TD.stride(),
            BLOCK_T=32, BLOCK_E=block_e, BLOCK_D=block_d, num_warps=4, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    return (parts_PED[0] if num_parts == 1 else parts_PED.sum(dim=0)).to(weight_ED.dtype)


def parts_of(num_tokens: int) -> tuple[int, int]:
    """How many tokens a part has, which is a multiple of what a program takes at a time, and how many parts there are.

    Example:
        >>> parts_of(0), parts_of(8192), parts_of(1_000_000)
        ((1024, 1), (1024, 8), (31744, 32))
    """
    tokens_of_part = _TOKENS_OF_A_PART * max(1, triton.cdiv(num_tokens, _TOKENS_OF_A_PART * _MOST_PARTS))
    return tokens_of_part, max(1, triton.cdiv(num_tokens, tokens_of_part))


def _block(size: int, most: int) -> int:
    """A power of two that matrix instructions take.

    Example:
        >>> _block(5, 64), _block(100, 64)
        (16, 64)
    """
    return max(16, min(most, power_of_two(size)))
