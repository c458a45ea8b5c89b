"""The numbers of experts and choices that models have (the specification's list), to the experts and back."""

import cases
import golden_rows as golden
import numpy as np
import pytest
import torch
from torch import Tensor

from moegate import ascend

SHAPES = {
    "DeepSeek-V3": (256, 8),
    "DeepSeek-V4": (256, 6),
    "Kimi-K2": (384, 8),
    "GLM-4.5": (160, 8),
    "GLM-4.5 Air": (128, 8),
    "Qwen3-Next": (512, 10),
    "benchmark 192": (192, 10),
    "benchmark 193": (193, 10),
    "benchmark 191": (191, 9),
    "benchmark 2048": (2048, 10),
}
"""Experts, experts per token."""


def tokens_and_experts(name: str, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    num_experts, top_k = SHAPES[name]
    generator = np.random.default_rng(num_experts + top_k)
    chosen = [generator.permutation(num_experts)[:top_k] for _ in range(num_tokens)]
    experts = torch.from_numpy(np.array(chosen, np.int32))
    return (
        cases.random_rows(generator, num_tokens, 4, dtype=dtype),
        experts,
        cases.random_rows(generator, num_tokens, top_k),
    )


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("num_tokens", (1, 13))
@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back(name: str, num_tokens: int, dtype: torch.dtype) -> None:
    (num_experts, top_k), (x, experts, scales) = SHAPES[name], tokens_and_experts(name, num_tokens, dtype)
    scales = scales.to(dtype)
    wide, ids, factors = cases.widened(x), experts.numpy(), cases.widened(scales)
    by_row = ascend.npu_moe_init_routing_v2(x, experts, expert_num=num_experts, strict=True)
    rows, index, _, _ = golden.init_routing_dropless(wide, ids, 0, num_experts, -1, False)
    assert cases.same_bits(by_row[0], rows) and cases.same_bits(by_row[1], index)
    row_idx = torch.arange(num_tokens * top_k, dtype=torch.int32).view(top_k, num_tokens).t().contiguous()
    by_column = ascend.npu_moe_init_routing(x, row_idx, experts, num_tokens, strict=True)
    assert cases.same_bits(by_column[0], rows)
    padded = ascend.npu_moe_init_routing_v2(
        x, experts, expert_num=num_experts, drop_pad_mode=1, expert_capacity=1, strict=True
    )
    places = golden.init_routing_drop_pad(wide, ids, num_experts, 1)
    assert cases.same_bits(padded[0], places[0]) and cases.same_bits(padded[1], places[1])
    columns = padded[1].view(num_tokens, top_k).t().reshape(-1)
    for mode, moved, found_index in (
        (0, by_column[0], by_column[1]),
        (1, padded[0], columns),
        (2, by_row[0], by_row[1]),
        (3, padded[0], padded[1]),
    ):
        out = ascend.npu_moe_finalize_routing(moved, x, None, None, scales, found_index, experts, mode, strict=True)
        wanted = golden.finalize_routing(
            cases.widened(moved), wide, None, None, factors, found_index.numpy(), ids, mode
        )
        assert cases.same_bits(out, wanted)


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_through_dispatch_and_combine(name: str) -> None:
    x, experts, scales = tokens_and_experts(name, 13, torch.float32)
    num_experts = SHAPES[name][0]
    sent = ascend.npu_moe_distribute_dispatch_v2(x, experts, "", 1, 0, num_experts)
    out = ascend.npu_moe_distribute_combine_v2(sent[0], experts, sent[2], sent[4], scales, "", 1, 0, num_experts)
    rows, index, counts, _ = ascend.npu_moe_init_routing_v2(
        x, experts, expert_num=num_experts, expert_tokens_num_type=1, expert_tokens_num_flag=True
    )
    assert torch.equal(sent[0][: len(rows)], rows) and torch.equal(sent[3], counts)
    assert torch.equal(out, ascend.npu_moe_finalize_routing(rows, None, None, None, scales, index, experts, 2))
