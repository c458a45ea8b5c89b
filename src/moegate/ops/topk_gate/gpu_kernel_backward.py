"""The gradient of the gate in Triton: one program writes that of a few tokens for a block of experts."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import rounded
from moegate.ops.topk_gate.gpu_kernel import scores_of


@triton.jit
def times_slope(grad_tk, z_tk, score_tk, SCORE: tl.constexpr):
    """The gradient of scores as one of their logits, each expert for itself; float64."""
    if SCORE == "sigmoid":
        return grad_tk * (score_tk * (1.0 / (1.0 + tl.exp(z_tk))))
    if SCORE == "sqrt_softplus":
        # sigmoid(z) / (2 s); in the tail both are exp(z), and s its root.
        in_tail_tk = z_tk < -40.0
        body_tk = (1.0 / (1.0 + tl.exp(-z_tk))) / (2.0 * tl.where(in_tail_tk, 1.0, score_tk))
        return grad_tk * tl.where(in_tail_tk, score_tk * 0.5, body_tk)
    if SCORE == "relu":
        return tl.where(z_tk <= 0, 0.0, grad_tk)
    return grad_tk


@triton.jit
def chosen_gradient(
    grad_tk, z_tk, logsumexp_t, real_tk,
    SCORE: tl.constexpr, RENORMALIZE: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """The gradient of the chosen logits, and of the logsumexp, from that of the weights before the scale; float64."""
    score_tk = tl.where(real_tk, scores_of(z_tk, logsumexp_t, real_tk, SCORE), 0.0)
    if RENORMALIZE:
        divisor_t1 = tl.sum(score_tk, axis=1)[:, None] + tl.full((1, 1), EPS, tl.float64)
        grad_tk = (grad_tk - tl.sum(grad_tk * (score_tk / divisor_t1), axis=1)[:, None]) / divisor_t1
    if SCORE == "softmax":
        grad_tk = tl.where(real_tk, grad_tk * score_tk, 0.0)
        return grad_tk, -tl.sum(grad_tk, axis=1)
    if SCORE == "softmax_selected":
        grad_tk = score_tk * (grad_tk - tl.sum(grad_tk * score_tk, axis=1)[:, None])
    else:
        grad_tk = times_slope(grad_tk, z_tk, score_tk, SCORE)
    return tl.where(real_tk, grad_tk, 0.0), tl.zeros_like(logsumexp_t)


@triton.jit
def topk_gate_backward_kernel(
    grad_weights_ptr, grad_logsumexp_ptr, grad_chosen_ptr, index_ptr, chosen_ptr, logsumexp_ptr, logits_ptr, out_ptr,
    num_tokens, num_experts, stride_t, stride_e, scale,
    K: tl.constexpr, EPS: tl.constexpr, WEIGHT_SCORE: tl.constexpr, RENORMALIZE: tl.constexpr,
    FROM_WEIGHTS: tl.constexpr, FROM_LOGSUMEXP: tl.constexpr, FROM_CHOSEN: tl.constexpr, HAS_LOGSUMEXP: tl.constexpr,
    HAS_LOGITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits of ``BLOCK_T`` tokens and ``BLOCK_E`` experts."""
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    slot_k = tl.arange(0, BLOCK_K)
    here_t = token_t < num_tokens
    place_tk = token_t[:, None] * K + slot_k[None, :]
    index_tk = tl.load(index_ptr + place_tk, mask=here_t[:, None] & (slot_k < K)[None, :], other=-1).to(tl.int32)
    real_tk = index_tk >= 0
    z_tk = tl.load(chosen_ptr + place_tk, mask=real_tk, other=0.0).to(tl.float64)
    logsumexp_t = tl.full((BLOCK_T,), 0.0, tl.float64)
    if HAS_LOGSUMEXP:
        logsumexp_t = tl.load(logsumexp_ptr + token_t, mask=here_t, other=0.0)
    total_tk = tl.full((BLOCK_T, BLOCK_K), 0.0, tl.float64)
    from_total_t = tl.full((BLOCK_T,), 0.0, tl.float64)
    if FROM_WEIGHTS:
        grad_tk = tl.load(grad_weights_ptr + place_tk, mask=real_tk, other=0.0).to(tl.float64) * scale
        total_tk, from_total_t = chosen_gradient(grad_tk, z_tk, logsumexp_t, real_tk, WEIGHT_SCORE, RENORMALIZE, EPS)
    if FROM_CHOSEN:
        total_tk += tl.load(grad_chosen_ptr + place_tk, mask=real_tk, other=0.0)
    if FROM_LOGSUMEXP:
        from_total_t += tl.load(grad_logsumexp_ptr + token_t, mask=here_t, other=0.0)

    grad_te = tl.full((BLOCK_T, BLOCK_E), 0.0, tl.float64)
    for k in range(K):
        of_slot_tk = slot_k[None, :] == k
        expert_t = tl.max(tl.where(of_slot_tk, index_tk, -1), axis=1)
        value_t = tl.sum(tl.where(of_slot_tk, total_tk, 0.0), axis=1)
        grad_te = tl.where(expert_e[None, :] == expert_t[:, None], value_t[:, None], grad_te)
    inside_te = here_t[:, None] & (expert_e < num_experts)[None, :]
    if HAS_LOGITS:
        seen_t = tl.max(real_tk.to(tl.int32), axis=1) > 0
        place_te = token_t[:, None] * stride_t + expert_e.to(tl.int64)[None, :] * stride_e
        logits_te = tl.load(logits_ptr + place_te, mask=inside_te & seen_t[:, None], other=0.0).to(tl.float64)
        dense_te = from_total_t[:, None] * tl.exp(logits_te - logsumexp_t[:, None])
        grad_te += tl.where(seen_t[:, None], dense_te, 0.0)
    out_te = out_ptr + token_t[:, None] * num_experts + expert_e[None, :]
    tl.store(out_te, rounded(grad_te.to(tl.float32), out_ptr.dtype.element_ty), mask=inside_te)
