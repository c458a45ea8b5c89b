"""The portable scores on devices that Triton serves: sizes, allocation, launch."""

import math

import torch
import triton
from torch import Tensor

from moegate.ops.portable.gpu_kernel import elementwise_scores_kernel, softmax_scores_kernel
from moegate.ops.portable.reference import PORTABLE_SCORES

_ELEMENTS = 1024


def portable_scores(logits: Tensor, score: str) -> Tensor:
    """``[..., E]`` float32 of float32, bfloat16 or float16 logits."""
    if score not in PORTABLE_SCORES:
        raise RuntimeError(f"score must be one of {', '.join(PORTABLE_SCORES)}; got {score!r}.")
    scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    if scores.numel() == 0:
        return scores
    # A multiplication and an addition must not become one rounding, or the bits are those of this device alone.
    options = {"num_warps": 4, "enable_fp_fusion": False}
    if score == "softmax":
        num_experts = logits.shape[-1]
        logits_TE = logits.reshape(math.prod(logits.shape[:-1]), num_experts)
        block, options["num_warps"] = row_block(num_experts)
        softmax_scores_kernel[(logits_TE.shape[0],)](
            logits_TE, scores, num_experts, *logits_TE.stride(), BLOCK=block, **options
        )
        return scores
    elementwise_scores_kernel[(triton.cdiv(scores.numel(), _ELEMENTS),)](
        logits.contiguous(), scores, scores.numel(), SCORE=score, BLOCK=_ELEMENTS, **options
    )
    return scores


def row_block(num_experts: int) -> tuple[int, int]:
    """How many experts of a row one program takes at a time, and its warps: 16 logits a thread."""
    warps = 1 if num_experts <= 1024 else 4 if num_experts <= 8192 else 8
    return min(triton.next_power_of_2(num_experts), 512 * warps), warps
