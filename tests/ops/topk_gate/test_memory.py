"""Nothing is read or written outside the tensors, nothing is read before it is written, and little memory is used."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gate_cases import DTYPES, ISAS, serving
from torch import Tensor

from moegate.bench.memory import peak_bytes
from moegate.ops import library
from moegate.ops.topk_gate import topk_gate
from moegate.ops.topk_gate.options import SCORES

needs_kernels = pytest.mark.skipif(
    not library.KERNELS.loaded, reason=f"needs the CPU kernels: {library.KERNELS.reason}"
)


def surrounded(values: Tensor, fill: float) -> Tensor:
    """The same values between 64 others on each side, which a block that reaches too far would meet."""
    frame = torch.full((values.numel() + 128,), fill, dtype=values.dtype)
    frame[64:-64] = values.reshape(-1)
    return frame[64:-64].view(values.shape)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_experts", [1, 7, 15, 16, 17, 31, 33, 100, 130])
def test_what_lies_around_the_logits_does_not_matter(isa: str, dtype: torch.dtype, num_experts: int) -> None:
    """Neither NaN nor a value that would win."""
    logits, bias = torch.randn(3, num_experts).to(dtype), torch.randn(num_experts)
    num_groups = num_experts // 5 if num_experts % 5 == 0 else 1
    rule = {
        "top_k": min(5, num_experts), "num_groups": num_groups, "groups_kept": max(1, num_groups // 2),
        "group_score": "top2_sum" if num_groups > 1 else "max", "with_logsumexp": True,
    }  # fmt: skip
    for score in SCORES:
        with serving(isa):
            expected = topk_gate(logits, score=score, bias_E=bias, **rule)
            for fill in (float("nan"), 1e4):
                found = topk_gate(surrounded(logits, fill), score=score, bias_E=surrounded(bias, fill), **rule)
                assert found.index.equal(expected.index) and found.weights.equal(expected.weights)
                assert found.logsumexp is not None and expected.logsumexp is not None
                assert found.logsumexp.equal(expected.logsumexp)


@needs_kernels
def test_guarded_memory() -> None:
    """In a process whose allocator surrounds and poisons every block, all outputs are still what they should be."""
    script = """
import torch
from moegate.bench.memory import peak_bytes
from moegate.ops import library
from moegate.ops.topk_gate import topk_gate
for isa in library.available_isas():
    with library.forced_isa(isa):
        for num_experts in (1, 15, 16, 17, 33, 200, 1000):
            for top_k in sorted({1, min(5, num_experts), num_experts}):
                logits = torch.randn(5, num_experts, requires_grad=True)
                mask = torch.tensor([True, False, True, True, True])
                gated = topk_gate(logits, top_k=top_k, score="softmax", token_mask_T=mask, with_counts=True)
                gated.weights.sum().backward()
                assert bool(gated.weights.isfinite().all()) and bool(logits.grad.isfinite().all())
                assert int(gated.counts.sum()) == 4 * top_k
                assert bool((gated.index < num_experts).all())
"""
    guards = {"MALLOC_PERTURB_": "255", "MALLOC_CHECK_": "3", "PATH": "", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", script], env=guards, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


MEBIBYTE = 2**20


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_no_more_memory_than_the_outputs_and_a_mebibyte_a_thread(isa: str) -> None:
    """At the peak of a call, with and without a bias, groups, counts and a logsumexp."""
    script = Path(__file__).with_name("gate_memory.py")
    environment = os.environ | {"PYTHONPATH": str(script.parent.parent)}  # where its helpers lie
    found = subprocess.run([sys.executable, script, isa], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    measured = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(measured) == 3 * 2 * 2
    for one in measured:
        assert one["excess"] is None or one["excess"] <= one["threads"] * MEBIBYTE, one


@needs_kernels
@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_no_more_memory_than_the_gradient_and_a_mebibyte(score: str) -> None:
    """Neither with a gradient of the chosen alone nor with one of all logits."""
    num_tokens, num_experts, top_k = 2**15, 256, 8
    logits = torch.randn(num_tokens, num_experts, requires_grad=True)
    weights = topk_gate(logits, top_k=top_k, score=score).weights
    grads = torch.ones_like(weights)
    peak = peak_bytes(lambda: torch.autograd.grad(weights, logits, grads, retain_graph=True))
    assert peak is None or peak <= num_tokens * num_experts * 4 + MEBIBYTE


def seconds_per_logit(num_experts: int) -> float:
    """The fastest of some calls over 2^20 logits, by the clock of the thread."""
    logits, bias = torch.randn(2**20 // num_experts, num_experts), torch.randn(num_experts)
    found = []
    for _ in range(7):
        start = time.thread_time()
        topk_gate(logits, top_k=8, score="sigmoid", bias_E=bias, renormalize=True)
        found.append(time.thread_time() - start)
    return min(found) / logits.numel()


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_time_grows_as_the_number_of_experts(isa: str) -> None:
    """A logit of 65,536 costs what one of 1,024 costs; sorting a row would cost more than half as much again."""
    found = []
    with serving(isa):
        # Other work on the machine takes its caches away now and then, which a longer row feels more.
        while len(found) < 5 and min(found, default=2.0) > 1.5:
            found.append(seconds_per_logit(65536) / seconds_per_logit(1024))
    assert min(found) <= 1.5, found
