"""The gradient of the gate in Triton: one program writes that of a few tokens for a block of experts."""

import triton
import triton.language as tl

from moegate.ops.gpu.rounding import rounded, widened
from moegate.ops.topk_gate.gpu_kernel import scores_of


@triton.jit
def times_slope(grad_tk, z_tk, score_tk, SCORE: tl.constexpr):
    """The gradient of scores as one of their logits, each expert for itself; float64."""
    if SCORE == "sigmoid":
        return grad_tk * (score_tk * (1.0 / (1.0 + tl.exp(z_tk))))
    if SCORE == "sqrt_softplus":
        # sigmoid(z) / (2 s); in the tail both are exp(z), and s its root. An empty slot has a score of 0.
        in_tail_tk = z_tk < -40.0
        body_tk = (1.0 / (1.0 + tl.exp(-z_tk))) / (2.0 * tl.where(in_tail_tk | (score_tk == 0.0), 1.0, score_tk))
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
    num_tokens, num_experts, stride_t, stride_e,
    K: tl.constexpr, EPS: tl.constexpr, SCALE: tl.constexpr, WEIGHT_SCORE: tl.constexpr, RENORMALIZE: tl.constexpr,
    FROM_WEIGHTS: tl.constexpr, FROM_LOGSUMEXP: tl.constexpr, FROM_CHOSEN: tl.constexpr, DENSE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits of ``BLOCK_T`` tokens and ``BLOCK_E`` experts: of all of them, then of the chosen."""
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    first_expert = tl.program_id(1) * BLOCK_E
    expert_e = first_expert + tl.arange(0, BLOCK_E)
    here_t = token_t < num_tokens
    out_te = out_ptr + token_t[:, None] * num_experts + expert_e[None, :]
    inside_te = here_t[:, None] & (expert_e < num_experts)[None, :]
    if not DENSE:
        tl.store(out_te, tl.zeros((BLOCK_T, BLOCK_E), out_ptr.dtype.element_ty), mask=inside_te)

    slot_k = tl.arange(0, BLOCK_K)
    place_tk = token_t[:, None] * K + slot_k[None, :]
    index_tk = tl.load(index_ptr + place_tk, mask=here_t[:, None] & (slot_k < K)[None, :], other=-1)
    real_tk = (index_tk >= 0) & (index_tk < num_experts)
    z_tk = tl.load(chosen_ptr + place_tk, mask=real_tk, other=0.0).to(tl.float64)
    logsumexp_t = tl.full((BLOCK_T,), 0.0, tl.float64)
    if DENSE:
        logsumexp_t = tl.load(logsumexp_ptr + token_t, mask=here_t, other=0.0)
    total_tk = tl.full((BLOCK_T, BLOCK_K), 0.0, tl.float64)
    from_total_t = tl.full((BLOCK_T,), 0.0, tl.float64)
    if FROM_WEIGHTS:
        grad_tk = tl.load(grad_weights_ptr + place_tk, mask=real_tk, other=0.0).to(tl.float64)
        grad_tk *= tl.full((1, 1), SCALE, tl.float64)
        total_tk, from_total_t = chosen_gradient(grad_tk, z_tk, logsumexp_t, real_tk, WEIGHT_SCORE, RENORMALIZE, EPS)
    if FROM_CHOSEN:
        total_tk += tl.load(grad_chosen_ptr + place_tk, mask=real_tk, other=0.0)
    if FROM_LOGSUMEXP:
        from_total_t += tl.load(grad_logsumexp_ptr + token_t, mask=here_t, other=0.0)
    if DENSE:
        seen_t = tl.max(real_tk.to(tl.int32), axis=1) > 0
        logits_te = logits_ptr + token_t[:, None] * stride_t + expert_e.to(tl.int64)[None, :] * stride_e
        z_te = widened(tl.load(logits_te, mask=inside_te & seen_t[:, None], other=0.0), tl.float64)
        dense_te = from_total_t[:, None] * tl.exp(z_te - logsumexp_t[:, None])
        dense_te = tl.where(seen_t[:, None], dense_te, 0.0).to(tl.float32)
        tl.store(out_te, rounded(dense_te, out_ptr.dtype.element_ty), mask=inside_te)
        total_tk += from_total_t[:, None] * tl.exp(z_tk - logsumexp_t[:, None])

    # Whichever thread wrote these places before has done so.
    tl.debug_barrier()
    inside_tk = real_tk & (index_tk >= first_expert) & (index_tk < first_expert + BLOCK_E)
    out_tk = out_ptr + token_t[:, None] * num_experts + index_tk
    tl.store(out_tk, rounded(total_tk.to(tl.float32), out_ptr.dtype.element_ty), mask=inside_tk)
