"""The gate on a CPU costs what ``topk_gate`` costs for the same work: the operator around it adds little."""

import os
import subprocess
import sys

MOST = 1.05
TRIES = 8
# In turn, by the clock of the one thread, and medians of many: other work on the machine hits both sides alike. What
# follows lines of Python, such as a measurement of coverage, would be timed too: hence a process of its own.
SCRIPT = """
import statistics
import time
import torch
from moegate.ascend import npu_moe_gating_top_k
from moegate.ops.topk_gate import topk_gate

torch.set_num_threads(1)
logits, bias = torch.randn(4096, 256), torch.randn(256) * 0.1


def fused():
    return topk_gate(
        logits, bias_E=bias, top_k=8, score="sigmoid", num_groups=8, groups_kept=4, group_score="top2_sum",
        renormalize=True, scale=2.5, rank_by="scores", index_dtype=torch.int32,
    )


def operator():
    return npu_moe_gating_top_k(
        logits, 8, bias=bias, k_group=4, group_count=8, group_select_mode=1, norm_type=1, routed_scaling_factor=2.5
    )


assert all(map(torch.equal, fused()[:2], operator()[:2]))
times = {fused: [], operator: []}
for round in range(500):
    for call in times if round % 2 else reversed(times):
        start = time.thread_time()
        call()
        times[call].append(time.thread_time() - start)
print(statistics.median(times[operator]) / statistics.median(times[fused]))
"""


def measured_ratio() -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "COVERAGE"))}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_the_operator_is_within_five_percent_of_the_fused_gate() -> None:
    # Where memory happens to lie moves the ratio of a process by some percent either way; another process, another
    # place. One more pass over the logits would cost thirty percent in all of them.
    ratios = []
    while len(ratios) < TRIES and min(ratios, default=MOST + 1) > MOST:
        ratios.append(measured_ratio())
    assert min(ratios) <= MOST, ratios
