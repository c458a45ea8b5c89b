"""Calls of the operators at the sizes of published models, whose kernels are compiled and looked at."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moegate.ops import combine, dispatch_plan, ordered_topk, permute, topk_by_key, topk_gate
from moegate.ops.experts.activations import ACTIVATIONS
from moegate.ops.portable import PORTABLE_SCORES, portable_scores

OPERATORS = torch.ops.moegate
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
SWIGLU = list(ACTIVATIONS).index("swiglu")


def new(*shape: int, dtype: torch.dtype = FLOAT32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def gate(
    num_tokens: int, num_experts: int, top_k: int, score: str, dtype: torch.dtype = FLOAT32, *,
    bias: bool = False, masked: bool = False, **rule: object,
) -> None:  # fmt: skip
    topk_gate(
        new(num_tokens, num_experts, dtype=dtype), top_k=top_k, score=score,
        bias_E=new(num_experts) if bias else None,
        token_mask_T=new(num_tokens, dtype=torch.bool) if masked else None, **rule,
    )  # fmt: skip


def gate_in_training(num_tokens: int, num_experts: int, top_k: int, score: int, dtype: torch.dtype) -> None:
    """Forward with what a backward needs, and the backward, each from the raw operator."""
    logits, renormalize_and_logsumexp = new(num_tokens, num_experts, dtype=dtype), 0
    mode = score | score << 4 | renormalize_and_logsumexp << 8
    OPERATORS.topk_gate_statistics(logits, None, None, top_k, 1, 1, 1e-20, 1.0, mode)
    index = new(num_tokens, top_k, dtype=torch.int64)
    chosen, total, grad = new(num_tokens, top_k), new(num_tokens, dtype=torch.float64), new(num_tokens, top_k)
    OPERATORS.topk_gate_backward(grad, None, None, index, chosen, total, logits, num_experts, dtype, 1e-20, 1.0, mode)


def plan(num_tokens: int, num_experts: int, top_k: int, **options: object) -> None:
    dispatch_plan(new(num_tokens, top_k, dtype=torch.int64), num_experts, **options)


def rows(num_tokens: int, hidden_size: int, top_k: int, num_experts: int, dtype: torch.dtype) -> None:
    """Tokens to rows and back, forward and backward."""
    num_rows = num_tokens * top_k
    slot, inverse = new(num_rows, dtype=torch.int64), new(num_tokens, top_k, dtype=torch.int64)
    hidden, rows_RD, weights = new(num_tokens, hidden_size, dtype=dtype), new(num_rows, hidden_size, dtype=dtype), None
    permute(hidden, slot, inverse)
    weights = new(num_tokens, top_k)
    combine(rows_RD, slot, inverse, weights)
    OPERATORS.combine_backward(hidden, rows_RD, slot, inverse, weights)
    OPERATORS.permute_backward(rows_RD, hidden, slot, inverse, weights)


def experts(
    num_rows: int, hidden_size: int, inner_size: int, num_experts: int, dtype: torch.dtype, backward: bool = True
) -> None:
    rows_RD, offsets = new(num_rows, hidden_size, dtype=dtype), new(num_experts, dtype=torch.int64)
    up = new(num_experts, 2 * inner_size, hidden_size, dtype=dtype)
    down = new(num_experts, hidden_size, inner_size, dtype=dtype)
    OPERATORS.experts(rows_RD, up, down, offsets, SWIGLU, backward)
    if backward:
        pre = new(num_rows, 2 * inner_size, dtype=dtype)
        given = rows_RD, rows_RD, pre, up, down, offsets, SWIGLU
        OPERATORS.experts_backward(*given, True, True)
        OPERATORS.experts_backward_into(*given, True, new(*up.shape), new(*down.shape))


def mixture(num_tokens: int, hidden_size: int, inner_size: int, num_experts: int, top_k: int) -> None:
    up = new(num_experts, 2 * inner_size, hidden_size, dtype=BFLOAT16)
    down = new(num_experts, hidden_size, inner_size, dtype=BFLOAT16)
    index, weights = new(num_tokens, top_k, dtype=torch.int64), new(num_tokens, top_k)
    OPERATORS.mixture(new(num_tokens, hidden_size, dtype=BFLOAT16), index, weights, up, down, SWIGLU, False)


def trained_mixture(num_tokens: int, hidden_size: int, inner_size: int, num_experts: int, top_k: int) -> None:
    """A training step of a layer behind its gate."""
    up = new(num_experts, 2 * inner_size, hidden_size, dtype=BFLOAT16)
    down = new(num_experts, hidden_size, inner_size, dtype=BFLOAT16)
    index, weights = new(num_tokens, top_k, dtype=torch.int64), new(num_tokens, top_k)
    hidden = new(num_tokens, hidden_size, dtype=BFLOAT16)
    _, slot, inverse, offsets, pre = OPERATORS.trained_mixture(hidden, index, weights, up, down, SWIGLU)
    given = hidden, hidden, weights, slot, inverse, offsets, pre, up, down, SWIGLU
    OPERATORS.trained_mixture_backward(*given, True, True, True)


def logits(num_tokens: int, hidden_size: int, num_experts: int) -> None:
    """A router's product, and its gradients."""
    hidden, weight = new(num_tokens, hidden_size, dtype=BFLOAT16), new(num_experts, hidden_size, dtype=BFLOAT16)
    OPERATORS.wide_linear(hidden, weight)
    OPERATORS.wide_linear_backward(new(num_tokens, num_experts), hidden, weight, True, True)


def order() -> None:
    for num_experts, k in ((256, 8), (512, 22), (8192, 700), (65536, 64), (9000, 9000)):
        ordered_topk(new(4096, num_experts), k)
        topk_by_key(new(4096, num_experts, dtype=torch.int32), k)
    for score in PORTABLE_SCORES:
        portable_scores(new(4096, 256), score)


CASES: dict[str, Callable[[], None]] = {
    "gate E256 K8": partial(gate, 8192, 256, 8, "softmax_selected"),
    "gate E256 K8 bfloat16": partial(gate, 8192, 256, 8, "softmax_selected", BFLOAT16),
    "gate E256 K8 groups": partial(
        gate,
        8192,
        256,
        8,
        "sigmoid",
        bias=True,
        renormalize=True,
        scale=2.5,
        num_groups=8,
        groups_kept=4,
        group_score="top2_sum",
    ),
    "gate E128 K8 softmax": partial(gate, 8192, 128, 8, "softmax", BFLOAT16, renormalize=True),
    "gate E8 K2": partial(gate, 8192, 8, 2, "softmax_selected", BFLOAT16),
    "gate E512 K8": partial(gate, 8192, 512, 8, "softmax_selected"),
    "gate E512 K22 bias": partial(gate, 8192, 512, 22, "sigmoid", bias=True, renormalize=True),
    "gate E896 K16": partial(gate, 8192, 896, 16, "sigmoid", bias=True),
    "gate E2048 K32": partial(gate, 8192, 2048, 32, "sqrt_softplus", bias=True, renormalize=True),
    "gate E65536 K64": partial(gate, 512, 65536, 64, "softmax"),
    "gate E2048 K64": partial(gate, 8192, 2048, 64, "sigmoid", bias=True, renormalize=True),
    "gate E16384 K32": partial(gate, 512, 16384, 32, "softmax_selected", BFLOAT16, masked=True),
    "gate E8192 groups": partial(
        gate, 512, 8192, 40, "sigmoid", bias=True, num_groups=64, groups_kept=16, group_score="top2_sum"
    ),
    "gate E4096 K4096": partial(gate, 64, 4096, 4096, "sqrt_softplus", BFLOAT16),
    "gate decoding": partial(gate, 1, 256, 8, "sigmoid", bias=True, renormalize=True, index_dtype=torch.int32),
    "gate with statistics": partial(gate, 8192, 128, 8, "softmax", masked=True, with_counts=True, with_logsumexp=True),
    "gate training, softmax": partial(gate_in_training, 8192, 256, 8, 0, FLOAT32),
    "gate training, sigmoid": partial(gate_in_training, 8192, 256, 8, 2, BFLOAT16),
    "plan": partial(plan, 8192, 256, 8),
    "plan of a decoding step": partial(plan, 8, 128, 8),
    "plan, aligned": partial(plan, 8192, 128, 8, alignment=128),
    "plan, capacity": partial(plan, 8192, 64, 2, capacity=320, fill=True),
    "plan of many experts": partial(plan, 8192, 65536, 8),
    "rows D7168": partial(rows, 8192, 7168, 8, 256, BFLOAT16),
    "rows D768 float32": partial(rows, 4096, 768, 2, 8, FLOAT32),
    "experts D2048 F768 E128": partial(experts, 65536, 2048, 768, 128, BFLOAT16),
    "experts float16": partial(experts, 65536, 2048, 768, 128, torch.float16),
    "experts float32": partial(experts, 4096, 768, 3072, 8, FLOAT32),
    "experts, few rows": partial(experts, 256, 2048, 768, 128, BFLOAT16, False),
    "mixture T1": partial(mixture, 1, 2048, 768, 128, 8),
    "mixture T32": partial(mixture, 32, 2048, 768, 128, 8),
    "mixture T8192": partial(mixture, 8192, 2048, 768, 128, 8),
    "mixture in training": partial(trained_mixture, 8192, 2048, 768, 128, 8),
    "logits T1": partial(logits, 1, 2048, 128),
    "logits T8192": partial(logits, 8192, 2048, 128),
    "order": order,
}
