"""The gate on devices that Triton serves: sizes, allocation, launch."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from moegate.ops.library import falls_back
from moegate.ops.topk_gate.gpu_checks import check_chosen, check_dense, check_gate, check_gradient
from moegate.ops.topk_gate.gpu_kernel import topk_gate_kernel
from moegate.ops.topk_gate.gpu_kernel_backward import topk_gate_backward_kernel
from moegate.ops.topk_gate.gpu_operator_large import topk_gate_statistics_large
from moegate.ops.topk_gate.options import Mode, Options, mode_of
from moegate.ops.topk_gate.reference import Statistics, topk_gate_backward_reference

_LARGEST_TILE = 4096
_MOST_ROUNDS = 32  # experts that are chosen one after another; more of them are sorted
_LARGEST_SORTED_TILE = 512
_MOST_GROUPS = 32  # of which rough keys choose
_MOST_SLOTS = 2048  # of a gradient, all of which a program holds
_LANES_OF_A_WARP = 1024  # that fit its registers
_PROGRAMS_TO_FILL_A_DEVICE = 512
_APPROXIMATED = ("softmax", "sigmoid", "sqrt_softplus")
_ZERO_BITS = {torch.bfloat16: 16, torch.float16: 13}  # the lowest of such a number as float32


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

    A warp holds whole rows, so that reductions stay in its registers, as long as these suffice: several rows, whose
    weights keep all lanes of the warp busy, or one where there are too few to fill a device, for that is done soonest.
    """
    num_groups = options.num_groups if options.groups_kept < options.num_groups else 1
    group_size = num_experts // num_groups
    block_g, block_s = triton.next_power_of_2(num_groups), triton.next_power_of_2(group_size)
    block_e, top_k = block_g * block_s, options.top_k
    if block_e > (_LARGEST_TILE if top_k <= _MOST_ROUNDS else _LARGEST_SORTED_TILE):
        return None
    by_rough_keys = top_k <= _MOST_ROUNDS and num_groups <= _MOST_GROUPS
    block_t = min(8 if block_e < 128 else 4, max(1, 2048 // block_e)) if by_rough_keys and top_k <= 16 else 1
    while block_t > 1 and num_tokens < block_t * _PROGRAMS_TO_FILL_A_DEVICE:
        block_t //= 2
    # So many that hardly ever more than three of the chosen lie in one.
    columns = min(block_e, 4 * triton.next_power_of_2(max(top_k, 8))) if by_rough_keys else 0
    num_warps = max(1, block_e // _LANES_OF_A_WARP)
    return Tile(
        NUM_GROUPS=num_groups,
        GROUP_SIZE=group_size,
        GROUPS_KEPT=min(options.groups_kept, num_groups),
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        BLOCK_S=block_s,
        BLOCK_K=_slots(top_k, block_t, num_warps),
        COLUMNS=columns,
        # As many as one load of 16 bytes brings.
        NEIGHBOURS=min(16 // itemsize, block_e // columns) if columns else 1,
        num_warps=num_warps,
    )


def _slots(top_k: int, block_t: int, num_warps: int) -> int:
    """A power of two from ``top_k``, and at least so many that every thread has one."""
    return max(int(triton.next_power_of_2(top_k)), 32 * num_warps // block_t)


def topk_gate(
    logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, *numbers: Any
) -> tuple[Tensor, Tensor]:
    """Weights and experts alone."""
    found = _gate(logits_TE, bias_E, token_mask_T, Options(*numbers), with_chosen=False)
    return found.weights, found.index


def topk_gate_statistics(
    logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, *numbers: Any
) -> Statistics:
    """Weights, experts, counts, logsumexps, and the logits of the experts."""
    return _gate(logits_TE, bias_E, token_mask_T, Options(*numbers), with_chosen=True)


def _gate(
    logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, options: Options, with_chosen: bool
) -> Statistics:
    check_gate(logits_TE, bias_E, token_mask_T, options)
    num_tokens, num_experts = logits_TE.shape
    tile = tile_for(num_tokens, num_experts, logits_TE.element_size(), options)
    if tile is None:
        return topk_gate_statistics_large(logits_TE, bias_E, token_mask_T, *options)
    mode = mode_of(options.mode)
    found = _empty_statistics(logits_TE, options.top_k, mode, with_chosen)
    if num_tokens:
        topk_gate_kernel[(triton.cdiv(num_tokens, tile.BLOCK_T),)](
            logits_TE,
            None if bias_E is None else bias_E.contiguous(),
            None if token_mask_T is None else token_mask_T.contiguous(),
            *found,
            num_tokens,
            *logits_TE.stride(),
            options.scale,
            K=options.top_k,
            EPS=options.eps,
            **_choices(logits_TE, bias_E, mode, tile),
            HAS_MASK=token_mask_T is not None,
            WITH_CHOSEN=with_chosen,
            **tile._asdict(),
            enable_fp_fusion=False,
        )
    return found


def _choices(logits_TE: Tensor, bias_E: Tensor | None, mode: Mode, tile: Tile) -> dict[str, Any]:
    """The parameters of the kernel that say what it computes."""
    ranks_scores = bias_E is not None or mode.ranks_scores
    # A logit of a narrow type leaves room below it for an index; a bias fills it, and so does a computed score.
    ranks_logits = bias_E is None and not (mode.ranks_scores and mode.score in _APPROXIMATED)
    room = _ZERO_BITS.get(logits_TE.dtype, 0) if ranks_logits else 0
    return {
        "SCORE": mode.score,
        "WEIGHT_SCORE": mode.weight_score,
        "BY_TOP2_SUM": mode.groups_by_top2_sum,
        "RANKS_SCORES": ranks_scores,
        "RENORMALIZE": mode.renormalize,
        "HAS_BIAS": bias_E is not None,
        "WITH_COUNTS": mode.with_counts,
        "WITH_LOGSUMEXP": mode.with_logsumexp,
        "EXACT": 2**room >= tile.BLOCK_G * tile.BLOCK_S,
    }


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


def topk_gate_backward(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_weights_TK: Tensor | None,
    grad_logsumexp_T: Tensor | None,
    grad_chosen_TK: Tensor | None,
    index_TK: Tensor,
    chosen_TK: Tensor,
    logsumexp_T: Tensor,
    logits_TE: Tensor | None,
    num_experts: int,
    dtype: torch.dtype,
    eps: float,
    scale: float,
    mode: int,
) -> Tensor:
    """The gradient of the logits.

    An index that is no expert counts as an empty slot, since to refuse it would take a wait for the device; of two
    slots of a token with the same index, which ``topk_gate`` never returns, either may give the gradient.
    """
    check_gradient(num_experts, dtype, eps, scale)
    check_chosen(index_TK, chosen_TK, grad_weights=grad_weights_TK, grad_chosen=grad_chosen_TK)
    num_tokens, top_k = index_TK.shape
    choice = mode_of(mode)
    from_weights, from_logsumexp = grad_weights_TK is not None, grad_logsumexp_T is not None
    dense = from_logsumexp or (from_weights and choice.weight_score == "softmax")
    if dense:
        check_dense(logsumexp_T, grad_logsumexp_T, logits_TE, (num_tokens, num_experts))
    if top_k > _MOST_SLOTS:
        falls_back("topk_gate_backward", f"{top_k} experts a token are more than a program holds")
        return topk_gate_backward_reference(
            grad_weights_TK, grad_logsumexp_T, grad_chosen_TK, index_TK, chosen_TK, logsumexp_T, logits_TE,
            num_experts, dtype, eps, scale, mode
        )  # fmt: skip
    grad_TE = torch.empty(num_tokens, num_experts, dtype=dtype, device=index_TK.device)
    if num_tokens == 0:
        return grad_TE
    block_e = min(1024, triton.next_power_of_2(num_experts))
    num_warps = min(8, max(1, triton.next_power_of_2(top_k) // 128))
    block_t = min(4, max(1, 1024 // block_e, 32 // triton.next_power_of_2(top_k)))
    inputs = (grad_weights_TK, grad_logsumexp_T, grad_chosen_TK, index_TK, chosen_TK, logsumexp_T)
    topk_gate_backward_kernel[(triton.cdiv(num_tokens, block_t), triton.cdiv(num_experts, block_e))](
        *(None if given is None else given.contiguous() for given in inputs),
        logits_TE,
        grad_TE,
        num_tokens,
        num_experts,
        *((0, 0) if logits_TE is None else logits_TE.stride()),
        K=top_k,
        EPS=eps,
        SCALE=scale,
        WEIGHT_SCORE=choice.weight_score,
        RENORMALIZE=choice.renormalize,
        FROM_WEIGHTS=from_weights,
        FROM_LOGSUMEXP=from_logsumexp,
        FROM_CHOSEN=grad_chosen_TK is not None,
        DENSE=dense,
        BLOCK_T=block_t,
        BLOCK_E=block_e,
        BLOCK_K=_slots(top_k, block_t, num_warps),
        num_warps=num_warps,
        enable_fp_fusion=True,
    )
    return grad_TE
