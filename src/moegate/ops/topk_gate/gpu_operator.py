"""The gate on devices that Triton serves: sizes, allocation, launch."""

import torch
import triton
from torch import Tensor

from moegate.ops.topk_gate.gpu_kernel import topk_gate_kernel
from moegate.ops.topk_gate.gpu_kernel_backward import topk_gate_backward_kernel
from moegate.ops.topk_gate.options import Options, mode_of
from moegate.ops.topk_gate.reference import Statistics, topk_gate_statistics_reference

LARGEST_TILE = 8192


def topk_gate_statistics(logits_TE: Tensor, bias_E, token_mask_T, *numbers) -> Statistics:
    options = Options(*numbers)
    mode = mode_of(options.mode)
    T, E = logits_TE.shape
    G, S = options.num_groups, E // options.num_groups
    if options.groups_kept == G:
        G, S = 1, E
    block_g, block_s = triton.next_power_of_2(G), triton.next_power_of_2(S)
    block_e = block_g * block_s
    if block_e > LARGEST_TILE or logits_TE.dtype == torch.float64:
        return topk_gate_statistics_reference(logits_TE, bias_E, token_mask_T, *numbers)
    K = options.top_k
    dev = logits_TE.device
    weights = torch.empty(T, K, dtype=torch.float32, device=dev)
    index = torch.empty(T, K, dtype=torch.int32 if mode.narrow_index else torch.int64, device=dev)
    chosen = torch.empty(T, K, dtype=torch.float32, device=dev)
    counts = torch.zeros(E if mode.with_counts else 0, dtype=torch.int64, device=dev)
    lse = torch.empty(T if mode.with_logsumexp else 0, dtype=torch.float64, device=dev)
    if T == 0:
        return Statistics(weights, index, counts, lse, chosen)
    block_t = max(1, min(4, 256 // block_e))
    topk_gate_kernel[(triton.cdiv(T, block_t),)](
        logits_TE,
        bias_E,
        token_mask_T,
        weights,
        index,
        counts,
        lse,
        chosen,
        T,
        logits_TE.stride(0),
        logits_TE.stride(1),
        float(options.scale),
        K=K,
        NUM_GROUPS=G,
        GROUP_SIZE=S,
        GROUPS_KEPT=min(options.groups_kept, G),
        EPS=options.eps,
        SCORE=mode.score,
        WEIGHT_SCORE=mode.weight_score,
        BY_TOP2_SUM=mode.groups_by_top2_sum,
        RANKS_SCORES=bias_E is not None or mode.ranks_scores,
        RENORMALIZE=mode.renormalize,
        HAS_BIAS=bias_E is not None,
        HAS_MASK=token_mask_T is not None,
        WITH_COUNTS=mode.with_counts,
        WITH_LOGSUMEXP=mode.with_logsumexp,
        WITH_CHOSEN=True,
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        BLOCK_S=block_s,
        BLOCK_K=triton.next_power_of_2(K),
    )
    return Statistics(weights, index, counts, lse, chosen)


def topk_gate_backward(
    grad_weights, grad_logsumexp, grad_chosen, index, chosen, logsumexp, logits, num_experts, dtype, eps, scale, mode
):
    m = mode_of(mode)
    T, K = index.shape
    out = torch.empty(T, num_experts, dtype=dtype, device=index.device)
    if T == 0:
        return out
    grads = [None if g is None else g.contiguous() for g in (grad_weights, grad_logsumexp, grad_chosen)]
    block_e = min(1024, triton.next_power_of_2(num_experts))
    block_t = max(1, min(4, 512 // block_e))
    st, se = (logits.stride(0), logits.stride(1)) if logits is not None else (0, 0)
    topk_gate_backward_kernel[(triton.cdiv(T, block_t), triton.cdiv(num_experts, block_e))](
        *grads,
        index,
        chosen,
        logsumexp,
        logits,
        out,
        T,
        num_experts,
        st,
        se,
        float(scale),
        K=K,
        EPS=eps,
        WEIGHT_SCORE=m.weight_score,
        RENORMALIZE=m.renormalize,
        FROM_WEIGHTS=grads[0] is not None,
        FROM_LOGSUMEXP=grads[1] is not None and logits is not None,
        FROM_CHOSEN=grads[2] is not None,
        HAS_LOGSUMEXP=logsumexp.numel() > 0,
        HAS_LOGITS=logits is not None
        and (grads[1] is not None or (grads[0] is not None and m.weight_score == "softmax")),
        BLOCK_T=block_t,
        BLOCK_E=block_e,
        BLOCK_K=triton.next_power_of_2(K),
    )
    return out


def topk_gate(logits_TE, bias_E, token_mask_T, *numbers):
    statistics = topk_gate_statistics(logits_TE, bias_E, token_mask_T, *numbers)
    return statistics.weights, statistics.index
