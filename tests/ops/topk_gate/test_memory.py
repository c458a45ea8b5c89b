"""Nothing is read or written outside the tensors, nothing is read before it is written, and little memory is used."""

import resource
import subprocess
import sys

import pytest
import torch
from gate_cases import DTYPES, ISAS, serving
from torch import Tensor

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


@needs_kernels
@pytest.mark.parametrize("with_bias", [False, True])
def test_no_temporary_of_the_size_of_the_logits(with_bias: bool) -> None:
    """Peak memory grows by the outputs and at most 1 MiB, on one thread."""
    logits, bias = torch.randn(4000, 4096), torch.randn(4096) if with_bias else None
    outputs = 4000 * 8 * (4 + 8)
    inputs = {"top_k": 8, "score": "sigmoid", "bias_E": bias, "num_groups": 8, "groups_kept": 4}
    topk_gate(logits[:8], **inputs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    topk_gate(logits, **inputs)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown <= outputs + 2**20
