"""The gate on a CPU costs what ``topk_gate`` costs for the same work: the operator around it adds little."""

import time
from collections.abc import Callable

import torch

from moegate.ascend import npu_moe_gating_top_k
from moegate.ops.topk_gate import topk_gate

ROUNDS = 60
MOST = 1.05


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_the_operator_is_within_five_percent_of_the_fused_gate() -> None:
    logits, bias = torch.randn(4096, 256), torch.randn(256) * 0.1

    def fused() -> object:
        return topk_gate(
            logits, bias_E=bias, top_k=8, score="sigmoid", num_groups=8, groups_kept=4, group_score="top2_sum",
            renormalize=True, scale=2.5, rank_by="scores", index_dtype=torch.int32,
        )  # fmt: skip

    def operator() -> object:
        return npu_moe_gating_top_k(
            logits, 8, bias=bias, k_group=4, group_count=8, group_select_mode=1, norm_type=1, routed_scaling_factor=2.5
        )

    # In turn, and the best of many: other work on the machine can only make a call slower.
    best = {fused: seconds(fused), operator: seconds(operator)}
    for done in range(ROUNDS):
        for call, value in best.items():
            best[call] = min(value, seconds(call))
        if best[operator] <= MOST * best[fused] and done > 10:
            break
    assert best[operator] <= MOST * best[fused]
