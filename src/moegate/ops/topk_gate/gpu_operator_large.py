"""The gate beyond one tile, on devices that Triton serves: any number of experts, and any number of them chosen.

What the reference does, one after the other, with the logits read in place: what a softmax has to know of its rows; the
groups that stay; the experts, by ``ordered_topk``'s kernels, which score the logits as they read them; the weights.
Nothing of the size of all logits is allocated, unless thousands of experts are chosen.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from moegate.ops.ordered_topk.gpu_operator import (
    LARGEST_SORT_OF_A_PROGRAM,
    Ranking,
    Sizes,
    candidates_of,
    put_in_order,
    topk_rows,
)
from moegate.ops.portable.gpu_operator import row_block
from moegate.ops.topk_gate.formula import weights_of
from moegate.ops.topk_gate.gpu_kernel_large import group_scores_kernel, row_statistics_kernel, weights_kernel
from moegate.ops.topk_gate.options import Mode, Options, mode_of
from moegate.ops.topk_gate.reference import Statistics, count_of

_LARGEST_K_OF_A_PROGRAM = 2048
_GROUP_TILE = 1024


@dataclass(frozen=True)
class _Gate:
    """A call of the gate."""

    logits: Tensor
    bias: Tensor | None
    token_mask: Tensor | None
    options: Options
    mode: Mode

    @property
    def ranks_scores(self) -> bool:
        return self.bias is not None or self.mode.ranks_scores

    @property
    def is_grouped(self) -> bool:
        return self.options.groups_kept < self.options.num_groups

    @property
    def score(self) -> str:
        """What a bias is added to: the logits where the softmax comes after the selection."""
        return "identity" if self.mode.score == "softmax_selected" else self.mode.score

    @property
    def needs_softmax(self) -> bool:
        sums_scores = self.is_grouped and self.mode.groups_by_top2_sum
        return self.score == "softmax" and (self.ranks_scores or sums_scores)


def topk_gate_statistics_large(
    logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, *numbers: Any, sizes: Sizes | None = None
) -> Statistics:
    """``topk_gate_statistics`` for float32, bfloat16 and float16 logits, however many experts there are.

    ``sizes`` are those of the search for the experts, for tests.
    """
    options = Options(*numbers)
    bias_E = None if bias_E is None else bias_E.contiguous()
    token_mask_T = None if token_mask_T is None else token_mask_T.contiguous()
    gate = _Gate(logits_TE, bias_E, token_mask_T, options, mode_of(options.mode))
    num_tokens, num_experts = logits_TE.shape
    dtype = torch.int32 if gate.mode.narrow_index else torch.int64
    index_TK = torch.empty(num_tokens, options.top_k, dtype=dtype, device=logits_TE.device)
    if num_tokens == 0:
        counts_E = torch.zeros(num_experts if gate.mode.with_counts else 0, dtype=torch.int64, device=index_TK.device)
        empty_TK = index_TK.to(torch.float32)
        return Statistics(empty_TK, index_TK, counts_E, empty_TK.new_empty(0, dtype=torch.float64), empty_TK.clone())
    rows = _row_statistics(gate)
    ranking = Ranking(
        score=gate.score if gate.ranks_scores else "identity",
        bias=gate.bias,
        softmax=rows.softmax,
        excluded=_dropped_groups(gate, rows.softmax) if gate.is_grouped else None,
        group_size=num_experts // options.num_groups if gate.is_grouped else 1,
        mask=token_mask_T,
    )
    found = candidates_of(logits_TE, options.top_k, ranking, with_spoiled=True, sizes=sizes)
    if found.keys.shape[1] <= LARGEST_SORT_OF_A_PROGRAM:
        return _weighed(gate, found.keys, index_TK, found.spoiled, rows)
    put_in_order(found.keys, index_TK)
    if options.top_k <= _LARGEST_K_OF_A_PROGRAM:
        return _weighed(gate, None, index_TK, found.spoiled, rows)
    return _weighed_by_operators(gate, index_TK, found.spoiled, rows)


class _Rows(NamedTuple):
    """What is known of whole rows, as far as any has to know it.

    Attributes:
        softmax: ``[T, 2]`` float32, the greatest logit of each row and the total of its portable softmax.
        total: ``[T, 2]`` float64, the two parts of the logsumexp, for weights.
        logsumexp: ``[T]`` float64, for the caller; empty unless asked for.
    """

    softmax: Tensor | None
    total: Tensor | None
    logsumexp: Tensor


def _row_statistics(gate: _Gate) -> _Rows:
    num_tokens, num_experts = gate.logits.shape
    with_total, with_logsumexp = gate.mode.weight_score == "softmax", gate.mode.with_logsumexp
    rows = _Rows(
        softmax=gate.logits.new_empty(num_tokens, 2, dtype=torch.float32) if gate.needs_softmax else None,
        total=gate.logits.new_empty(num_tokens, 2, dtype=torch.float64) if with_total else None,
        logsumexp=gate.logits.new_empty(num_tokens if with_logsumexp else 0, dtype=torch.float64),
    )
    if gate.needs_softmax or with_total or with_logsumexp:
        block, warps = row_block(num_experts)
        row_statistics_kernel[(num_tokens,)](
            gate.logits, gate.token_mask, *rows, num_experts, *gate.logits.stride(),
            WITH_SOFTMAX=gate.needs_softmax, WITH_TOTAL=with_total, WITH_LOGSUMEXP=with_logsumexp,
            HAS_MASK=gate.token_mask is not None, BLOCK=block, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
    return rows


def _dropped_groups(gate: _Gate, softmax_T2: Tensor | None) -> Tensor:
    """``[T, G]`` bool."""
    num_tokens, num_experts = gate.logits.shape
    num_groups, top2 = gate.options.num_groups, gate.mode.groups_by_top2_sum
    group_size = num_experts // num_groups
    group_TG = torch.empty(num_tokens, num_groups, dtype=torch.float32, device=gate.logits.device)
    block_s = min(_GROUP_TILE, triton.next_power_of_2(group_size))
    block_g = min(_GROUP_TILE // block_s, triton.next_power_of_2(num_groups))
    group_scores_kernel[num_tokens, triton.cdiv(num_groups, block_g)](
        gate.logits, gate.bias, softmax_T2, group_TG, num_groups, group_size, *gate.logits.stride(),
        SCORE=gate.score if gate.ranks_scores or top2 else "identity", HAS_BIAS=gate.bias is not None,
        BY_TOP2_SUM=top2, BLOCK_G=block_g, BLOCK_S=block_s,
        num_warps=1 if block_g * block_s <= 512 else 4, enable_fp_fusion=False,
    )  # fmt: skip
    dropped_TG = torch.ones(num_tokens, num_groups, dtype=torch.bool, device=gate.logits.device)
    return dropped_TG.scatter_(1, topk_rows(group_TG, gate.options.groups_kept, Ranking()), False)


def _weighed(gate: _Gate, keys_TC: Tensor | None, index_TK: Tensor, spoiled_T: Tensor, rows: _Rows) -> Statistics:
    """The whole result, from the candidates of every token, or from its experts; masked ones have any."""
    (num_tokens, num_experts), top_k = gate.logits.shape, gate.options.top_k
    weights_TK = torch.empty(num_tokens, top_k, dtype=torch.float32, device=index_TK.device)
    chosen_TK = torch.empty_like(weights_TK)
    with_counts = gate.mode.with_counts
    counts_E = torch.zeros(num_experts if with_counts else 0, dtype=torch.int64, device=index_TK.device)
    block_k = triton.next_power_of_2(top_k) if keys_TC is None else keys_TC.shape[1]
    block_t = max(1, 128 // block_k)
    weights_kernel[(triton.cdiv(num_tokens, block_t),)](
        gate.logits, gate.token_mask, keys_TC, spoiled_T, rows.total, index_TK, weights_TK, chosen_TK, counts_E,
        num_tokens, *gate.logits.stride(), float(gate.options.scale),
        K=top_k, EPS=gate.options.eps, WEIGHT_SCORE=gate.mode.weight_score, RENORMALIZE=gate.mode.renormalize,
        HAS_MASK=gate.token_mask is not None, HAS_KEYS=keys_TC is not None,
        WITH_COUNTS=with_counts,
        BLOCK_T=block_t, BLOCK_K=block_k, num_warps=1 if block_k <= 128 else 4, enable_fp_fusion=False,
    )  # fmt: skip
    return Statistics(weights_TK, index_TK, counts_E, rows.logsumexp, chosen_TK)


def _weighed_by_operators(gate: _Gate, index_TK: Tensor, spoiled_T: Tensor, rows: _Rows) -> Statistics:
    """The same by PyTorch's operators, where so many are chosen that no program holds them; all indices are sound."""
    chosen_TK = gate.logits.gather(-1, index_TK.to(torch.int64)).float()
    chosen_TK = chosen_TK.masked_fill(spoiled_T[:, None] > 0, torch.nan)
    if gate.token_mask is not None:
        masked_T1 = ~gate.token_mask[:, None]
        index_TK, chosen_TK = index_TK.masked_fill(masked_T1, -1), chosen_TK.masked_fill(masked_T1, 0.0)
    shifted_TK, log_total_T = chosen_TK.double(), rows.logsumexp
    if rows.total is not None:
        shifted_TK, log_total_T = shifted_TK - rows.total[:, :1], rows.total[:, 1]
    weights_TK = weights_of(shifted_TK, log_total_T, index_TK < 0, gate.options, gate.mode).float()
    counts_E = count_of(index_TK.to(torch.int64), gate.logits.shape[-1] if gate.mode.with_counts else 0)
    weights_TK = (weights_TK * gate.options.scale).masked_fill(index_TK < 0, 0.0)
    return Statistics(weights_TK, index_TK, counts_E, rows.logsumexp, chosen_TK)
