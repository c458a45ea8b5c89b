"""npu_moe_distribute_combine and its second version: the experts' rows back to the ranks of their tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moegate.ascend.distribute_dispatch import NUMBERS_PER_ROW
from moegate.ascend.distribute_limits import check_limits, check_special_numbers, check_unoffered
from moegate.ascend.exchange import exchange, process_group
from moegate.ascend.expert_parallel import ExpertParallel, SentRows, active_slots
from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import check_float, check_index, check_tensor, check_values, require_types
from moegate.ascend.re_routing import expert_major
from moegate.ascend.slot_terms import SlotTerms
from moegate.ascend.special_experts import NONE, Range, SpecialExperts
from moegate.ops.combine import combine
from moegate.ops.permute import permute


def npu_moe_distribute_combine(  # noqa: PLR0913, PLR0917 - the signature of torch_npu
    expand_x: Tensor,
    expert_ids: Tensor,
    expand_idx: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str | ProcessGroup,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    activation_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    group_list: Tensor | None = None,
    expand_scales: Tensor | None = None,
    shared_expert_x: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
    strict: bool = False,
) -> Tensor:
    """The first version of ``npu_moe_distribute_combine_v2``, for what the first dispatch sent.

    ``expand_idx`` is read no more than ``assist_info_for_combine`` is there; ``activation_scale``, ``weight_scale``,
    ``group_list``, ``out_dtype`` and ``group_list_type`` are the device's reserve and must be left out.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for what the hardware does not take.

    Example:
        >>> from moegate.ascend.distribute_dispatch import npu_moe_distribute_dispatch
        >>> x, expert_ids = torch.tensor([[1.0], [2.0]]), torch.tensor([[1, 0], [1, 2]], dtype=torch.int32)
        >>> rows, _, index, _, counts, _, _ = npu_moe_distribute_dispatch(x, expert_ids, "", 1, 0, 4)
        >>> npu_moe_distribute_combine(rows, expert_ids, index, counts, torch.ones(2, 2), "", 1, 0, 4).tolist()
        [[2.0], [4.0]]

    Source: torch_npu (op-plugin) npu_moe_distribute_combine; CANN aclnnMoeDistributeCombine.
    """
    check_unoffered(
        tp_world_size=tp_world_size,
        expert_shard_type=expert_shard_type,
        comm_quant_mode=comm_quant_mode,
        activation_scale=activation_scale,
        weight_scale=weight_scale,
        group_list=group_list,
        out_dtype=out_dtype,
        group_list_type=group_list_type,
    )
    layout = ExpertParallel(ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num, shared_expert_rank_num)
    call = _Call(expand_x, expert_ids, ep_send_counts, expert_scales, layout, x_active_mask, shared_expert_x)
    call.check("npu_moe_distribute_combine", strict)
    check_index("expand_idx", expand_idx, expert_ids.numel())
    return call.run(process_group(group_ep, ep_world_size, ep_rank_id))


def npu_moe_distribute_combine_v2(  # noqa: PLR0913, PLR0917 - the signature of torch_npu
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str | ProcessGroup,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expand_scales: Tensor | None = None,
    shared_expert_x: Tensor | None = None,
    elastic_info: Tensor | None = None,
    ori_x: Tensor | None = None,
    const_expert_alpha_1: Tensor | None = None,
    const_expert_alpha_2: Tensor | None = None,
    const_expert_v: Tensor | None = None,
    performance_info: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    comm_quant_mode: int = 0,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
    strict: bool = False,
) -> Tensor:
    """``out[i] = shared_expert_x[i] + Σ_j expert_scales[i, j] · y_j`` with ``y_j`` from the rank of expert ``j``.

    Every rank of the group must call it, with the arguments of its dispatch. The outputs of shared experts that have
    ranks of their own are added with the factor 1. Added in float32 (float64 in float64) in the order of ``j`` and
    rounded once; differentiable in every floating-point argument.

    Args:
        expand_x: ``[A, H]``, the experts' outputs, where dispatch put their rows.
        expert_ids: ``[BS, K]`` int32, as in dispatch.
        assist_info_for_combine: the third output of dispatch, not read: ``expert_ids`` says the same.
        ep_send_counts: the fifth output of dispatch, ``[e · ranks]`` int32.
        expert_scales: ``[BS, K]`` float32.
        x_active_mask: as in dispatch. A token without an active slot gives 0.
        shared_expert_x: ``[BS, H]``, or with two leading dimensions: what shared experts outside gave.
        ori_x: ``[BS, H]``, the tokens, for copy and constant experts.
        const_expert_alpha_1, const_expert_alpha_2, const_expert_v: ``[constant experts, H]``.
        tp_send_counts, expand_scales: outputs of dispatch, not read here.
        group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num, shared_expert_rank_num,
        zero_expert_num, copy_expert_num, const_expert_num, global_bs, comm_alg: as in dispatch.
        comm_quant_mode: rows travel as they are: only 0 is offered.
        elastic_info, performance_info, group_tp, tp_world_size, tp_rank_id, expert_shard_type: as in dispatch.
        strict: raises for what the hardware does not take.

    Returns:
        ``[BS, H]`` in the type of the rows.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for what the hardware does not take.

    Example:
        >>> from moegate.ascend.distribute_dispatch import npu_moe_distribute_dispatch_v2
        >>> x, expert_ids = torch.tensor([[1.0], [2.0]]), torch.tensor([[1, 0], [1, 3]], dtype=torch.int32)
        >>> sent = npu_moe_distribute_dispatch_v2(x, expert_ids, "", 1, 0, 3, copy_expert_num=1)
        >>> npu_moe_distribute_combine_v2(
        ...     10 * sent[0], expert_ids, sent[2], sent[4], torch.ones(2, 2), "", 1, 0, 3,
        ...     ori_x=x, copy_expert_num=1).flatten().tolist()
        [20.0, 22.0]

    Source: torch_npu (op-plugin) npu_moe_distribute_combine_v2; CANN aclnnMoeDistributeCombineV2 and V3.
    """
    check_unoffered(
        tp_world_size=tp_world_size,
        expert_shard_type=expert_shard_type,
        comm_alg=comm_alg,
        comm_quant_mode=comm_quant_mode,
        elastic_info=elastic_info,
        performance_info=performance_info,
    )
    check_special_numbers(
        zero_expert_num=zero_expert_num, copy_expert_num=copy_expert_num, const_expert_num=const_expert_num
    )
    zero = moe_expert_num, moe_expert_num + zero_expert_num
    copy = zero[1], zero[1] + copy_expert_num
    constant = copy[1], copy[1] + const_expert_num
    special = SpecialExperts(
        _range(zero), _range(copy), _range(constant), ori_x, const_expert_alpha_1, const_expert_alpha_2, const_expert_v
    )
    layout = ExpertParallel(
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        shared_expert_num,
        shared_expert_rank_num,
        zero_expert_num + copy_expert_num + const_expert_num,
    )
    call = _Call(expand_x, expert_ids, ep_send_counts, expert_scales, layout, x_active_mask, shared_expert_x, special)
    call.check("npu_moe_distribute_combine_v2", strict)
    check_index("assist_info_for_combine", assist_info_for_combine, expand_x.shape[0] * NUMBERS_PER_ROW)
    return call.run(process_group(group_ep, ep_world_size, ep_rank_id))


def _range(bounds: Range) -> Range:
    return bounds if bounds[0] < bounds[1] else NONE


@dataclass(frozen=True, eq=False)
class _Call:
    """One call's arguments, for both versions."""

    expand_x: Tensor
    expert_ids: Tensor
    ep_send_counts: Tensor
    expert_scales: Tensor
    layout: ExpertParallel
    x_active_mask: Tensor | None
    shared_expert_x: Tensor | None
    special: SpecialExperts | None = None

    def check(self, operator: str, strict: bool) -> None:
        layout = self.layout
        layout.check()
        check_tensor("expand_x", self.expand_x, "rows", "hidden size")
        check_float("expand_x", self.expand_x)
        layout.check_expert_ids(self.expert_ids, "tokens")
        num_tokens, hidden_size = self.expert_ids.shape[0], self.expand_x.shape[1]
        check_index("ep_send_counts", self.ep_send_counts, layout.local_experts * layout.world_size)
        check_values("ep_send_counts", self.ep_send_counts, 0, self.expand_x.shape[0], "numbers of rows")
        check_tensor("expert_scales", self.expert_scales, *self.expert_ids.shape)
        check_float("expert_scales", self.expert_scales)
        active_slots(self.x_active_mask, self.expert_ids)
        shared = self.shared_expert_x
        if shared is not None:
            check_float("shared_expert_x", shared)
            if shared.ndim not in (2, 3) or shared.numel() != num_tokens * hidden_size:
                wanted = f"[{num_tokens}, {hidden_size}]"
                raise AscendOperatorError(INVALID, f"shared_expert_x must be {wanted}, got {tuple(shared.shape)}.")
        if self.special is not None:
            self.special.check(num_tokens, hidden_size)
        if strict:
            require_types(operator, (torch.float16, torch.bfloat16), expand_x=self.expand_x)
            require_types(operator, (self.expand_x.dtype,), shared_expert_x=shared)
            require_types(operator, (torch.float32,), expert_scales=self.expert_scales)
            check_limits(operator, self.expand_x.shape, self.expert_ids, layout, self.x_active_mask)

    def run(self, group: ProcessGroup | None) -> Tensor:
        active_TK = active_slots(self.x_active_mask, self.expert_ids)
        sent = self.layout.plan(self.expert_ids, active_TK)
        rows_RH = self._returned(sent, group)
        ones_TS = self.expert_scales.new_ones(self.expert_ids.shape[0], self.layout.num_shared)
        scales_TP = torch.cat([self.expert_scales, ones_TS], dim=1)
        special = self.special
        plain = special is None or {special.zero, special.copy, special.constant} == {NONE}
        if plain and self.shared_expert_x is None:
            return combine(rows_RH, sent.places.slot, sent.places.inverse, scales_TP)
        return self._terms(rows_RH, sent, scales_TP, active_TK).added_to(self._start(active_TK)).to(rows_RH.dtype)

    def _returned(self, sent: SentRows, group: ProcessGroup | None) -> Tensor:
        """The outputs for this rank's slots, in the order in which it sent them."""
        layout = self.layout
        counts = self.ep_send_counts.to(torch.int64).diff(prepend=self.ep_send_counts.new_zeros(1).to(torch.int64))
        counts_WL = counts.view(layout.local_experts, layout.world_size).t()
        num_rows = int(counts_WL.sum())
        order = expert_major(counts_WL, num_rows)
        # The inverse of dispatch: by rank, then by expert.
        by_rank_RH = permute(self.expand_x[:num_rows], order.inverse[:, 0], order.slot[:, None])
        return exchange(by_rank_RH, counts_WL.sum(1).tolist(), sent.per_rank, group)

    def _terms(self, rows_RH: Tensor, sent: SentRows, scales_TP: Tensor, active_TK: Tensor | None) -> SlotTerms:
        num_tokens, num_shared = self.expert_ids.shape[0], self.layout.num_shared
        # A shared expert's slot is no special expert's.
        none_TS = self.expert_ids.new_full((num_tokens, num_shared), -1)
        experts_TP = torch.cat([self.expert_ids, none_TS], dim=1)
        if active_TK is not None:
            token_TS = active_TK.any(dim=1, keepdim=True).expand(num_tokens, num_shared)
            active_TK = torch.cat([active_TK, token_TS], dim=1)
        return SlotTerms(rows_RH, sent.places.inverse, scales_TP, experts_TP, special=self.special, active=active_TK)

    def _start(self, active_TK: Tensor | None) -> Tensor:
        num_tokens, hidden_size = self.expert_ids.shape[0], self.expand_x.shape[1]
        if self.shared_expert_x is None:
            return self.expand_x.new_zeros(num_tokens, hidden_size)
        start_TH = self.shared_expert_x.reshape(num_tokens, hidden_size)
        return start_TH if active_TK is None else torch.where(active_TK.any(dim=1)[:, None], start_TH, 0.0)
