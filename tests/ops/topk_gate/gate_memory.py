"""What a call of the gate takes at its peak beyond its outputs, measured in a process that has done nothing before.

Run with the name of an instruction set, it prints one JSON object a measurement. What other tests leave in the
allocator would be counted too, in their process.
"""

import json
import sys
from functools import partial

import torch
from gate_cases import serving

from moegate.bench.memory import peak_bytes
from moegate.ops.topk_gate import topk_gate

# [T, E] and K of 32 MiB of logits: a temporary of their size could not hide.
GROWTH = {"many tokens": (2**17, 64, 6), "plain": (2**15, 256, 8), "many experts": (2**7, 2**16, 64)}
LISTED = {"with_counts": True, "with_logsumexp": True}


def measure(isa: str) -> None:
    """With and without a bias, groups, counts and a logsumexp, by one thread and by two."""
    for shape, (num_tokens, num_experts, top_k) in GROWTH.items():
        logits, bias = torch.randn(num_tokens, num_experts), torch.randn(num_experts)
        outputs = num_tokens * top_k * (4 + 8)
        grouped = {"bias_E": bias, "num_groups": 8, "groups_kept": 4, "group_score": "top2_sum", "renormalize": True}
        statistics = num_tokens * (8 + 4) + num_tokens * top_k * 4 + num_experts * 8  # logsumexps, chosen, counts
        for rule, beside in (({"score": "softmax"}, 0), ({"score": "sigmoid", **grouped, **LISTED}, statistics)):
            for threads in (1, 2):
                with serving(isa, threads):
                    topk_gate(logits[: 64 * threads], top_k=top_k, **rule)
                    peak = peak_bytes(partial(topk_gate, logits, top_k=top_k, **rule))
                excess = None if peak is None else peak - outputs - beside
                print(json.dumps({"shape": shape, "score": rule["score"], "threads": threads, "excess": excess}))


if __name__ == "__main__":
    measure(sys.argv[1])
