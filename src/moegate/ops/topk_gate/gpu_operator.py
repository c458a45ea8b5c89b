"""The gate on devices that Triton serves: sizes, allocation, launch."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from moegate.ops.topk_gate.gpu_kernel import topk_gate_kernel
from moegate.ops.topk_gate.gpu_kernel_backward import topk_gate_backward_kernel
from moegate.ops.topk_gate.options import Mode, Options, mode_of
from moegate.ops.topk_gate.reference import Statistics, topk_gate_statistics_reference

_LARGEST_TILE = 4096
_MOST_ROUNDS = 32  # experts that are chosen one after another; more of them are sorted
_LARGEST_SORTED_TILE = 512
_MOST_GROUPS_COMPARED = 32
_PROGRAMS_TO_FILL_A_DEVICE = 512
_APPROXIMATED = ("softmax", "sigmoid", "sqrt_softplus")
_ZERO_BITS = {torch.bfloat16: 16, torch.float16: 13}  # at the lower end of such a number as float32


class Tile(NamedTuple):
    """How a program holds the logits of some tokens; the kernel's parameters of these names."""

    NUM_GROUPS: int
    GROUP_SIZE: int
    GROUPS_KEPT: int
    BLOCK_T: int
    BLOCK_G: int
    BLOCK_S: int
    BLOCK_K: int
    COLUMNS: int
    NEIGHBOURS: int
    num_warps: int


def tile_for(num_tokens: int, num_experts: int, itemsize: int, options: Options) -> Tile | None:
    """The tile of a gate: a plain function of its sizes; None where a row is too large for one.

    One warp holds a row, so that its reductions stay in registers. Programs of several rows keep all lanes of a warp
    busy with weights; where there are not enough rows to fill a device, one row a program is done soonest.
    """
    num_groups = options.num_groups if options.groups_kept < options.num_groups else 1
    group_size = num_experts // num_groups
    block_g, block_s = triton.next_power_of_2(num_groups), triton.next_power_of_2(group_size)
    block_e, top_k = block_g * block_s, options.top_k
    if block_e > (_LARGEST_TILE if top_k <= _MOST_ROUNDS else _LARGEST_SORTED_TILE):
        return None
    block_t = min(16, max(1, 1024 // block_e))
    while block_t > 1 and num_tokens < block_t * _PROGRAMS_TO_FILL_A_DEVICE:
        block_t //= 2
    columns = 0
    if top_k <= _MOST_ROUNDS and num_groups <= _MOST_GROUPS_COMPARED:
        columns = min(block_e, 4 * triton.next_power_of_2(max(top_k, 8)))
    return Tile(
        NUM_GROUPS=num_groups,
        GROUP_SIZE=group_size,
        GROUPS_KEPT=min(options.groups_kept, num_groups),
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        BLOCK_S=block_s,
        # A lane of the warp for each slot.
        BLOCK_K=max(triton.next_power_of_2(top_k), 32 // block_t),
        COLUMNS=columns,
        # As many as one load of 16 bytes brings.
        NEIGHBOURS=min(16 // itemsize, block_e // columns) if columns else 1,
        num_warps=1 if block_e <= 2048 else 2,
    )


def topk_gate(
    logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, *numbers: Any
) -> tuple[Tensor, Tensor]:
    """Weights and experts alone."""
    found = _gate(logits_TE, bias_E, token_mask_T, numbers, with_chosen=False)
    return found.weights, found.index


def topk_gate_statistics(
    logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, *numbers: Any
) -> Statistics:
    """Everything; float64 and what is too large for a tile goes elsewhere."""
    return _gate(logits_TE, bias_E, token_mask_T, numbers, with_chosen=True)


def _gate(
    logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, numbers: tuple[Any, ...], with_chosen: bool
) -> Statistics:
    options = Options(*numbers)
    num_tokens, num_experts = logits_TE.shape
    if logits_TE.dtype == torch.float64:
        return topk_gate_statistics_reference(logits_TE, bias_E, token_mask_T, *options)
    tile = tile_for(num_tokens, num_experts, logits_TE.element_size(), options)
    if tile is None:
        return topk_gate_statistics_reference(logits_TE, bias_E, token_mask_T, *options)
    mode = mode_of(options.mode)
    found = _empty_statistics(logits_TE, options.top_k, mode, with_chosen)
    if num_tokens == 0:
        return found
    parameters = tile._asdict()
    ranks_scores = bias_E is not None or mode.ranks_scores
    exact_bits = (
        0
        if ranks_scores and (bias_E is not None or mode.score in _APPROXIMATED)
        else _ZERO_BITS.get(logits_TE.dtype, 0)
    )
    topk_gate_kernel[(triton.cdiv(num_tokens, tile.BLOCK_T),)](
        logits_TE, None if bias_E is None else bias_E.contiguous(), None if token_mask_T is None else token_mask_T.contiguous(),
        *found, num_tokens, *logits_TE.stride(), float(options.scale),
        K=options.top_k,
        EPS=options.eps,
        SCORE=mode.score,
        WEIGHT_SCORE=mode.weight_score,
        BY_TOP2_SUM=mode.groups_by_top2_sum,
        RANKS_SCORES=ranks_scores,
        RENORMALIZE=mode.renormalize,
        HAS_BIAS=bias_E is not None,
        HAS_MASK=token_mask_T is not None,
        WITH_COUNTS=mode.with_counts,
        WITH_LOGSUMEXP=mode.with_logsumexp,
        WITH_CHOSEN=with_chosen,
        EXACT=tile.BLOCK_G * tile.BLOCK_S <= 1 << exact_bits,
        enable_fp_fusion=False,
        **parameters,
    )  # fmt: skip
    return found


def _empty_statistics(logits_TE: Tensor, top_k: int, mode: Mode, with_chosen: bool) -> Statistics:
    num_tokens, num_experts = logits_TE.shape
    device = logits_TE.device
    return Statistics(
        weights=torch.empty(num_tokens, top_k, dtype=torch.float32, device=device),
        index=torch.empty(num_tokens, top_k, dtype=torch.int32 if mode.narrow_index else torch.int64, device=device),
        counts=torch.zeros(num_experts if mode.with_counts else 0, dtype=torch.int64, device=device),
        logsumexp=torch.empty(num_tokens if mode.with_logsumexp else 0, dtype=torch.float64, device=device),
        chosen=torch.empty(num_tokens if with_chosen else 0, top_k, dtype=torch.float32, device=device),
    )


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
