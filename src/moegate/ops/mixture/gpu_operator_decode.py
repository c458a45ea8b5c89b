"""A mixture of few slots on devices that Triton serves: two launches, and when they are the better way."""

import triton
from torch import Tensor

from moegate.ops.experts.activations import function_of
from moegate.ops.mixture.gpu_kernel import decode_down_kernel, decode_up_kernel

_BYTES_AT_ONCE = 16384
"""What a program has in flight at once: for each of its 128 threads 8 loads of 16 bytes."""


def is_decoding(num_tokens: int, num_slots: int, num_experts: int) -> bool:
    """Whether each slot reads its expert for itself, instead of sorting them first.

    A single token names an expert once. Of several tokens, each slot costs a reading of its expert, if from the cache
    where another slot has just read it: that is worth it until the slots crowd on the experts.

    Example:
        >>> is_decoding(1, 64, 64), is_decoding(4, 32, 128), is_decoding(4, 32, 8), is_decoding(64, 512, 512)
        (True, True, False, False)
    """
    return num_tokens == 1 or num_slots <= min(32, 2 * num_experts)


def decode(
    hidden_TD: Tensor,
    index_TK: Tensor,
    weights_TK: Tensor,
    projections: tuple[Tensor, Tensor],
    activation: int,
    weight_input: bool,
) -> Tensor:
    """The tokens' outputs, by a launch for the inner values and one for the sums."""
    up, down_EDF = projections
    num_experts, hidden_size, width = down_EDF.shape
    num_tokens, top_k = index_TK.shape
    index_TK, weights_TK = index_TK.contiguous(), weights_TK.contiguous()
    inner_SF = hidden_TD.new_empty(num_tokens * top_k, width)
    out_TD = hidden_TD.new_empty(num_tokens, hidden_size)
    function, gated = function_of(activation)
    at_once = _BYTES_AT_ONCE // hidden_TD.element_size()
    block_d = min(512, triton.next_power_of_2(hidden_size))
    block_f = min(at_once // (2 * block_d if gated else block_d), triton.next_power_of_2(width))
    decode_up_kernel[num_tokens * top_k, triton.cdiv(width, block_f)](
        hidden_TD, index_TK, weights_TK, up, inner_SF, num_experts, hidden_size, width,
        *hidden_TD.stride(), *up.stride(),
        K=top_k, FUNCTION=function, GATED=gated, WEIGHT_INPUT=weight_input, BLOCK_F=block_f, BLOCK_D=block_d,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    block_k, block_f = min(8, triton.next_power_of_2(top_k)), min(256, triton.next_power_of_2(width))
    block_d = min(at_once // (block_k * block_f), triton.next_power_of_2(hidden_size))
    decode_down_kernel[triton.cdiv(hidden_size, block_d), num_tokens](
        inner_SF, index_TK, weights_TK, down_EDF, out_TD, num_experts, hidden_size, width, *down_EDF.stride(),
        K=top_k, HAS_WEIGHTS=not weight_input, BLOCK_K=block_k, BLOCK_D=block_d, BLOCK_F=block_f,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out_TD
