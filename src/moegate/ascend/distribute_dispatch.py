"""npu_moe_distribute_dispatch and its second version: tokens to the ranks that hold their experts."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moegate.ascend.distribute_limits import check_limits, check_special_numbers, check_unoffered
from moegate.ascend.exchange import exchange, process_group
from moegate.ascend.expert_parallel import ExpertParallel, SentRows, active_slots
from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import check_float, check_mode, check_tensor, require_types
from moegate.ascend.quantized import LARGEST, QuantizedRows, as_int8, greatest_magnitude
from moegate.ascend.re_routing import expert_major
from moegate.ascend.rows import padded_places
from moegate.ops.dispatch_plan import Places
from moegate.ops.permute import permute
from moegate.parts import check_integer

NUMBERS_PER_ROW = 128
_NOT_QUANTIZED, _DYNAMIC = 0, 2
_CUMULATIVE = 0


class Dispatched(NamedTuple):
    """The outputs of ``npu_moe_distribute_dispatch`` in their order."""

    expand_x: Tensor
    dynamic_scales: Tensor
    assist_info: Tensor
    expert_token_nums: Tensor
    ep_recv_counts: Tensor
    tp_recv_counts: Tensor
    expand_scales: Tensor


def npu_moe_distribute_dispatch(  # noqa: PLR0913 - the signature of torch_npu
    x: Tensor,
    expert_ids: Tensor,
    group_ep: str | ProcessGroup,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expert_scales: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
    strict: bool = False,
) -> Dispatched:
    """The first version of ``npu_moe_distribute_dispatch_v2``, whose arguments and outputs it has.

    Only the third output differs: ``expand_idx [BS · K]`` int32, the number of the slot among those that this rank
    sends to the same expert, -1 for a slot that is not sent.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for what the hardware does not take.

    Example:
        >>> x, expert_ids = torch.tensor([[1.0], [2.0]]), torch.tensor([[1, 0], [1, 2]], dtype=torch.int32)
        >>> npu_moe_distribute_dispatch(x, expert_ids, "", 1, 0, 4)[2].tolist()
        [0, 0, 1, 0]

    Source: torch_npu (op-plugin) npu_moe_distribute_dispatch; CANN aclnnMoeDistributeDispatch.
    """
    check_unoffered(tp_world_size=tp_world_size, expert_shard_type=expert_shard_type)
    layout = ExpertParallel(ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num, shared_expert_rank_num)
    call = _Call(
        x, expert_ids, layout, x_active_mask, scales, expert_scales, quant_mode, global_bs, expert_token_nums_type
    )
    call.check("npu_moe_distribute_dispatch", strict)
    outputs, sent = call.run(process_group(group_ep, ep_world_size, ep_rank_id), tp_world_size)
    return outputs._replace(assist_info=call.number_at_expert(sent).to(torch.int32))


def npu_moe_distribute_dispatch_v2(  # noqa: PLR0913 - the signature of torch_npu
    x: Tensor,
    expert_ids: Tensor,
    group_ep: str | ProcessGroup,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expert_scales: Tensor | None = None,
    elastic_info: Tensor | None = None,
    performance_info: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
    strict: bool = False,
) -> Dispatched:
    """Every token to the ranks of its experts, on torch.distributed; every rank of the group must call it.

    The rows that arrive lie by this rank's experts, then by the rank they came from, then in the order of its slots.
    Rank ``r`` holds the experts ``[r · e, (r + 1) · e)`` with ``e = E / ranks``; with shared experts, these lie on the
    first ranks. Differentiable in ``x`` (unless quantised) and ``expert_scales``.

    Args:
        x: ``[BS, H]``, this rank's tokens; ranks may have different numbers of them.
        expert_ids: ``[BS, K]`` int32; zero, copy and constant experts follow ``moe_expert_num``, and no row is sent.
        group_ep: the name of a process group (``group.group_name``), or the group. Not read for a world of one.
        ep_world_size, ep_rank_id: the group's size, and this rank in it.
        moe_expert_num: ``E``, all ranks' experts.
        scales: ``[shared experts + E, H]`` float32, what rows are multiplied by before they are quantised.
        x_active_mask: ``[BS]`` or ``[BS, K]`` bool, what takes part.
        expert_scales: ``[BS, K]`` float32, carried along with the rows.
        shared_expert_num, shared_expert_rank_num: shared experts, which every token goes to, and the ranks they are on.
        quant_mode: 0 none; 2 dynamic int8, ``round(row · (127 / max|row|))``.
        global_bs: the greatest ``BS`` times the ranks; 0 when all ranks have the same.
        expert_token_nums_type: 1 the rows of each expert, 0 the end of each expert's rows.
        comm_alg: how the device communicates; without effect here.
        zero_expert_num, copy_expert_num, const_expert_num: how many special experts there are.
        elastic_info, performance_info: not offered.
        group_tp, tp_world_size, tp_rank_id, expert_shard_type: no tensor-parallel group is offered.
        strict: raises for what the hardware does not take.

    Returns:
        - ``expand_x [A, H]``: the rows, in the type of x or int8, then zeros (undefined on the device).
          ``A`` is ``BS · ranks · min(e, K)``, or the same with ``global_bs`` in place of ``BS · ranks``.
        - ``dynamic_scales [A]`` float32: ``max|row| / 127``; 0 when not quantised (undefined on the device).
        - ``assist_info_for_combine [A · 128]`` int32: of each row the rank, token and slot it came from, -1 beyond.
          The device's numbers are its own: read them nowhere.
        - ``expert_token_nums [e]`` int64.
        - ``ep_recv_counts [e · ranks]`` int32: the rows by expert and rank, cumulative.
        - ``tp_recv_counts [tp_world_size]`` int32: the number of rows.
        - ``expand_scales [A]`` float32: the carried scales, 0 without.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit, or a rank receives more than ``A`` rows.
        AscendOperatorError: in strict mode, for what the hardware does not take.

    Example:
        >>> x, expert_ids = torch.tensor([[1.0], [2.0]]), torch.tensor([[1, 0], [1, 2]], dtype=torch.int32)
        >>> outputs = npu_moe_distribute_dispatch_v2(x, expert_ids, "", 1, 0, 3)
        >>> outputs[0].flatten().tolist(), outputs[3].tolist(), outputs[4].tolist()
        ([1.0, 1.0, 2.0, 2.0], [1, 2, 1], [1, 3, 4])

    Source: torch_npu (op-plugin) npu_moe_distribute_dispatch_v2; CANN aclnnMoeDistributeDispatchV2 and V3.
    """
    check_unoffered(
        tp_world_size=tp_world_size,
        expert_shard_type=expert_shard_type,
        comm_alg=comm_alg,
        elastic_info=elastic_info,
        performance_info=performance_info,
    )
    check_special_numbers(
        zero_expert_num=zero_expert_num, copy_expert_num=copy_expert_num, const_expert_num=const_expert_num
    )
    layout = ExpertParallel(
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        shared_expert_num,
        shared_expert_rank_num,
        zero_expert_num + copy_expert_num + const_expert_num,
    )
    call = _Call(
        x, expert_ids, layout, x_active_mask, scales, expert_scales, quant_mode, global_bs, expert_token_nums_type
    )
    call.check("npu_moe_distribute_dispatch_v2", strict)
    return call.run(process_group(group_ep, ep_world_size, ep_rank_id), tp_world_size)[0]


@dataclass(frozen=True, eq=False)
class _Call:
    """One call's arguments, for both versions."""

    x: Tensor
    expert_ids: Tensor
    layout: ExpertParallel
    x_active_mask: Tensor | None
    scales: Tensor | None
    expert_scales: Tensor | None
    quant_mode: int
    global_bs: int
    expert_token_nums_type: int

    def check(self, operator: str, strict: bool) -> None:
        layout = self.layout
        layout.check()
        check_tensor("x", self.x, "tokens", "hidden size")
        check_float("x", self.x)
        layout.check_expert_ids(self.expert_ids, self.x.shape[0])
        check_mode("quant_mode", self.quant_mode, (_NOT_QUANTIZED, _DYNAMIC))
        check_mode("expert_token_nums_type", self.expert_token_nums_type, (0, 1))
        check_integer("global_bs", self.global_bs, least=0)
        if self.expert_scales is not None:
            check_tensor("expert_scales", self.expert_scales, *self.expert_ids.shape)
            check_float("expert_scales", self.expert_scales)
        if self.scales is not None and self.quant_mode == _NOT_QUANTIZED:
            raise AscendOperatorError(INVALID, "scales belong to dynamic quantisation, quant_mode=2: leave them None.")
        if self.scales is not None:
            check_tensor("scales", self.scales, layout.num_shared + layout.moe_expert_num, self.x.shape[1])
            check_float("scales", self.scales)
        active_slots(self.x_active_mask, self.expert_ids)
        if strict:
            require_types(operator, (torch.float16, torch.bfloat16), x=self.x)
            require_types(operator, (torch.float32,), scales=self.scales, expert_scales=self.expert_scales)
            check_limits(operator, self.x.shape, self.expert_ids, layout, self.x_active_mask)

    def run(self, group: ProcessGroup | None, tp_world_size: int) -> tuple[Dispatched, SentRows]:
        layout = self.layout
        sent = layout.plan(self.expert_ids, active_slots(self.x_active_mask, self.expert_ids))
        counts_WL = layout.received_counts(sent, group)
        arrival = _Arrival(sent, counts_WL, group, self._most_rows(int(counts_WL.sum())))
        rows, row_scale = self._rows(sent)
        per_expert = counts_WL.sum(0)
        total = counts_WL.sum().to(torch.int32)
        outputs = Dispatched(
            arrival.of(rows),
            arrival.of(row_scale[:, None])[:, 0],
            arrival.origins(self._numbers(sent)).reshape(-1),
            per_expert.cumsum(0) if self.expert_token_nums_type == _CUMULATIVE else per_expert,
            counts_WL.t().reshape(-1).cumsum(0).to(torch.int32),
            total.expand(tp_world_size).clone(),
            arrival.of(self._carried(sent)[:, None])[:, 0],
        )
        return outputs, sent

    def _most_rows(self, received: int) -> int:
        num_tokens, top_k = self.expert_ids.shape
        most = self.layout.most_rows(num_tokens, top_k, self.global_bs)
        if received > most:
            raise AscendOperatorError(
                INVALID,
                f"This rank receives {received} rows, more than the {most} that its own {num_tokens} tokens and "
                f"global_bs={self.global_bs} allow: pass the greatest number of tokens times the ranks as global_bs.",
            )
        return most

    def _rows(self, sent: SentRows) -> tuple[Tensor, Tensor]:
        """The rows to send, and their scale."""
        num_slots = sent.places.inverse.shape[1]
        if self.quant_mode == _NOT_QUANTIZED:
            rows_RH = permute(self.x, sent.places.slot, sent.places.inverse)
            return rows_RH, torch.zeros(rows_RH.shape[0], dtype=torch.float32, device=rows_RH.device)
        rows_RH = self.x.detach().to(torch.float32)[sent.places.slot // max(1, num_slots)]
        if self.scales is not None:
            rows_RH = rows_RH * self.scales[self._scale_row(sent.places)]
        greatest_R = greatest_magnitude(rows_RH)
        return QuantizedRows(as_int8(rows_RH * (LARGEST / greatest_R)[:, None]), greatest_R / LARGEST)

    def _scale_row(self, places: Places) -> Tensor:
        """The row of ``scales`` for each row that is sent: shared experts first."""
        layout = self.layout
        place_P = torch.arange(places.counts.shape[0], device=places.counts.device)
        moe_P = place_P - layout.shared_expert_rank_num + layout.num_shared
        shared_P = place_P // max(1, layout.copies_per_shared if layout.num_shared else 1)
        scale_P = torch.where(place_P < layout.shared_expert_rank_num, shared_P, moe_P)
        return scale_P.repeat_interleave(places.counts)

    def _numbers(self, sent: SentRows) -> Tensor:
        """``[R, 3]`` int32: the rank, token and slot of each row."""
        slot_R, num_slots = sent.places.slot, max(1, sent.places.inverse.shape[1])
        rank_R = torch.full_like(slot_R, self.layout.rank)
        return torch.stack([rank_R, slot_R // num_slots, slot_R % num_slots], dim=1).to(torch.int32)

    def _carried(self, sent: SentRows) -> Tensor:
        """``[R]`` float32: the expert scale of each row, 1 for a shared expert's."""
        num_tokens, num_slots = sent.places.inverse.shape
        if self.expert_scales is None:
            return torch.zeros(sent.places.slot.shape[0], dtype=torch.float32, device=self.x.device)
        ones_TS = self.expert_scales.new_ones(num_tokens, num_slots - self.expert_scales.shape[1])
        return torch.cat([self.expert_scales, ones_TS], dim=1).reshape(-1)[sent.places.slot]

    def number_at_expert(self, sent: SentRows) -> Tensor:
        """``[BS · K]``: the number of each slot among those that this rank sends to the same expert, -1 if not sent."""
        first_P = sent.places.offsets - sent.places.counts
        place_of_row = torch.arange(first_P.shape[0], device=first_P.device).repeat_interleave(sent.places.counts)
        row_TP = sent.places.inverse[:, : self.expert_ids.shape[1]].reshape(-1)
        if place_of_row.numel() == 0:
            return torch.full_like(row_TP, -1)
        number = row_TP - first_P[place_of_row[row_TP.clamp(min=0)]]
        return torch.where(row_TP < 0, -1, number)


@dataclass(frozen=True, eq=False)
class _Arrival:
    """How the rows of all ranks arrive here: by expert, then by rank, padded to ``most`` rows."""

    sent: SentRows
    counts_WL: Tensor
    group: ProcessGroup | None
    most: int

    def of(self, rows: Tensor) -> Tensor:
        received = self.counts_WL.sum(1).tolist()
        arrived = exchange(rows, self.sent.per_rank, received, self.group)
        order = expert_major(self.counts_WL, arrived.shape[0])
        return permute(arrived, padded_places(order.slot, self.most), order.inverse)

    def origins(self, numbers_R3: Tensor) -> Tensor:
        """``[A, 128]``: three numbers for each row, -1 beyond the rows."""
        info = torch.full((self.most, NUMBERS_PER_ROW), -1, dtype=torch.int32, device=numbers_R3.device)
        num_rows = int(self.counts_WL.sum())
        info[:num_rows] = 0
        info[:num_rows, :3] = self.of(numbers_R3)[:num_rows]
        return info
