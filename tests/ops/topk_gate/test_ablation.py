"""The gate without one of its optimisations: the bits of topk_gate, and the choices of the oracle."""

import numpy as np
import pytest
import torch
from gate_cases import ALL_ISAS, KINDS, row_of, serving
from gate_oracle import distance_in_ulp, gated
from triton_support import not_on_triton

from moegate.ops.library import KERNELS
from moegate.ops.topk_gate import topk_gate
from moegate.ops.topk_gate.ablation import OPTIMISATIONS, ablated_topk_gate

pytestmark = not_on_triton("a study of the CPU kernel")
needs_kernels = pytest.mark.skipif(not KERNELS.loaded, reason=f"without the C++ kernels: {KERNELS.reason}")
RULE = {"score": "sigmoid", "renormalize": True}
# One and several blocks, with and without a rest; bounds from 32 lanes, from 3 k lanes, and by bisection.
SIZES = [(1, 1), (7, 7), (16, 3), (32, 32), (33, 1), (64, 8), (97, 16), (100, 40), (256, 8), (256, 32), (2048, 8)]


def hostile_logits(num_experts):
    generator = np.random.default_rng(num_experts)
    rows = np.array([row_of(kind, num_experts, generator) for kind in KINDS for _ in range(3)])
    return torch.from_numpy(rows).float()


def biases(num_experts):
    generator = torch.Generator().manual_seed(num_experts)
    broken = torch.tensor([0.0, float("nan"), float("inf"), float("-inf")])
    return [
        torch.zeros(num_experts),
        0.1 * torch.randn(num_experts, generator=generator),
        broken[torch.randint(0, 4, (num_experts,), generator=generator)],
    ]


@pytest.mark.parametrize("isa", ALL_ISAS)
@pytest.mark.parametrize("switched_off", OPTIMISATIONS)
@pytest.mark.parametrize(("num_experts", "top_k"), SIZES)
def test_the_bits_of_the_gate(isa, switched_off, num_experts, top_k):
    logits = hostile_logits(num_experts)
    for bias in biases(num_experts):
        with serving(isa):
            found = ablated_topk_gate(logits, bias, top_k=top_k, switched_off=switched_off)
            whole = topk_gate(logits, bias_E=bias, top_k=top_k, **RULE)
        assert torch.equal(found.index, whole.index)
        assert torch.equal(found.weights.isnan(), whole.weights.isnan())
        numbers = ~whole.weights.isnan()
        assert torch.equal(found.weights[numbers].view(torch.int32), whole.weights[numbers].view(torch.int32))


@pytest.mark.parametrize("switched_off", OPTIMISATIONS)
@pytest.mark.parametrize(("num_experts", "top_k"), [(33, 5), (256, 8), (256, 32)])
def test_against_the_oracle(switched_off, num_experts, top_k):
    logits = hostile_logits(num_experts)
    rule = {"top_k": top_k, "num_groups": 1, "groups_kept": 1, "group_score": "max", "eps": 1e-20, **RULE}
    for bias in biases(num_experts):
        expected = gated(logits, bias, None, rule)
        found = ablated_topk_gate(logits, bias, top_k=top_k, switched_off=switched_off)
        assert found.index.tolist() == expected.index
        assert distance_in_ulp(found.weights.numpy(), expected.weights) <= 2


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("switched_off", OPTIMISATIONS)
@pytest.mark.parametrize("prefetch", [False, True])
def test_threads_strides_and_prefetching_change_nothing(threads, switched_off, prefetch):
    logits, bias = torch.randn(601, 300)[::2, 3:259], torch.randn(512)[::2]
    whole = topk_gate(logits, bias_E=bias, top_k=8, **RULE)
    with serving(ALL_ISAS[-1], threads):
        found = ablated_topk_gate(logits, bias, top_k=8, switched_off=switched_off, prefetch=prefetch)
    assert torch.equal(found.index, whole.index)
    assert torch.equal(found.weights, whole.weights)


@pytest.mark.parametrize("switched_off", OPTIMISATIONS)
def test_no_tokens_and_one(switched_off):
    for num_tokens in (0, 1):
        logits = torch.randn(num_tokens, 40)
        found = ablated_topk_gate(logits, torch.zeros(40), top_k=4, switched_off=switched_off)
        assert found.index.shape == found.weights.shape == (num_tokens, 4)
        assert torch.equal(found.index, topk_gate(logits, bias_E=torch.zeros(40), top_k=4, **RULE).index)


@pytest.mark.parametrize("number", range(len(OPTIMISATIONS)))
def test_opcheck(number):
    arguments = (torch.randn(3, 40), torch.randn(40), 4, 1e-20, number, False)
    torch.library.opcheck(torch.ops.moegate.topk_gate_ablation.default, arguments)


@pytest.mark.parametrize(
    ("logits", "bias", "settings", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(3), {"top_k": 4}, "top_k=4 is out of range"),
        (torch.zeros(2, 3), torch.zeros(3), {"top_k": 0}, "top_k=0 is out of range"),
        (torch.zeros(2, 3), torch.zeros(2), {"top_k": 1}, r"got \(2, 3\) and \(2,\)"),
        (torch.zeros(3), torch.zeros(3), {"top_k": 1}, "logits must be"),
        (torch.zeros(2, 0), torch.zeros(0), {"top_k": 1}, "1 to 65,536 experts"),
        (torch.zeros(2, 3), torch.zeros(3), {"top_k": 1, "switched_off": "heap"}, "must be one of none, blocking"),
        (torch.zeros(2, 3).double(), torch.zeros(3), {"top_k": 1}, "of float32 logits and bias, got torch.float64"),
        (torch.zeros(2, 3), torch.zeros(3).half(), {"top_k": 1}, "and torch.float16"),
    ],
)
def test_what_is_refused(logits, bias, settings, said):
    with pytest.raises((TypeError, ValueError), match=said):
        ablated_topk_gate(logits, bias, **settings)


@needs_kernels
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"logits": torch.zeros(3)}, "logits must have 2 dimensions"),
        ({"logits": torch.zeros(2, 3).double()}, "logits must be Float"),
        ({"logits": torch.zeros(2, 0), "bias": torch.zeros(0)}, "from 1 to 65,536 experts, got 0"),
        ({"logits": torch.zeros(1, 65537), "bias": torch.zeros(65537)}, "from 1 to 65,536 experts, got 65537"),
        ({"bias": torch.zeros(4)}, "bias must hold one value for each of 3 experts, got 4"),
        ({"bias": torch.zeros(3, 1)}, "bias must have 1 dimensions"),
        ({"bias": torch.zeros(3).bfloat16()}, "bias must be Float"),
        ({"top_k": 4}, "top_k=4 is out of range"),
        ({"top_k": -1}, "top_k=-1 is out of range"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"number": 5}, "No optimisation has the number 5"),
        ({"number": -1}, "No optimisation has the number -1"),
    ],
)
def test_what_the_kernel_refuses(changed, said):
    given = {"logits": torch.zeros(2, 3), "bias": torch.zeros(3), "top_k": 2, "eps": 0.0, "number": 0, **changed}
    with pytest.raises(RuntimeError, match=said):
        torch.ops.moegate.topk_gate_ablation(*given.values(), False)
