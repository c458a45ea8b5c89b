"""npu_moe_init_routing_v2: rows sorted by expert, for a range of experts, padded to a capacity, as int8, as asked."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moegate.ascend.init_routing_attributes import (
    CUMULATIVE,
    DYNAMIC,
    GATHER,
    KEY_VALUE,
    NO_QUANTIZATION,
    Attributes,
    check_inputs,
    check_limits,
)
from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.quantized import dynamic_int8, static_int8
from moegate.ascend.rows import padded_places
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.permute import permute
from moegate.records import EMPTY, count_assignments


def npu_moe_init_routing_v2(  # noqa: PLR0913 - the signature of torch_npu
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
    x_dtype: torch.dtype | None = None,
    strict: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tokens' rows sorted by expert (CANN's third version, whose name in torch_npu says 2).

    Slot ``f = i · K + j`` is choice ``j`` of token ``i``. Rows are in the order of the expert, then of the slot. Only
    experts in the range ``[start, end)`` have rows; ``A`` is how many rows that makes. Differentiable in ``x`` and in
    a per-token ``scale``, unless rows are quantised.

    Args:
        x: ``[N, H]``.
        expert_idx: ``[N, K]`` int32. An id outside the range has no row.
        scale: not quantised: ``[N]``, carried along with the rows. Static: ``[1]``. Dynamic: ``[end - start, H]`` or
            ``[1, H]``, what the rows are multiplied by first.
        offset: static: ``[1]``; otherwise None.
        active_num: give at most this many *rows*; -1 and 0 for ``N · K``.
        expert_capacity: ``C``, the rows of each expert in drop-pad mode.
        expert_num: ``E``; without one, the end of the range.
        drop_pad_mode: 0 dropless; 1 each expert keeps its first ``C`` slots and is padded to ``C``.
        expert_tokens_num_type: 0 ends of the experts' rows, 1 rows per expert, 2 pairs of expert and rows.
        expert_tokens_num_flag: whether to count at all.
        quant_mode: -1 none, 0 static int8, 1 dynamic int8 (``moegate.ascend.quantized``).
        active_expert_range: ``[start, end)``; ``[0, E)`` when empty.
        row_idx_type: 0 gather: the row of each slot; 1 scatter: the slot of each row.
        x_dtype: for the device's 8-bit floats, which are not offered: None or the dtype of x.
        strict: raises for what the hardware does not take.

    Returns:
        - ``expanded_x``: ``[R, H]`` with ``R = N · K`` or ``min(active_num, N · K)``, 0 beyond the ``A`` rows
          (undefined on the device); ``[E, C, H]`` in drop-pad mode, 0 where an expert has fewer slots.
        - ``expanded_row_idx``: ``[N · K]`` int32. Gather: the row of each slot, -1 without one. Scatter: the slot of
          each row, -1 beyond the ``A`` rows (undefined on the device).
        - ``expert_token_cumsum_or_count``: int64 ``[end - start]``, or ``[E, 2]`` pairs of the experts that have rows,
          then zeros. Counted before anything is dropped; all 0 when not asked for (undefined on the device).
        - ``expanded_scale``: float32 ``[R]`` or ``[E · C]``: the carried or the dynamic scale of each row, 0 without
          one (undefined on the device).

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for a type or a size that the hardware does not take.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> expert_idx = torch.tensor([[2, 0], [1, 2], [0, 1]], dtype=torch.int32)
        >>> rows, places, counts, _ = npu_moe_init_routing_v2(
        ...     x, expert_idx, expert_num=3, active_expert_range=[1, 3],
        ...     expert_tokens_num_type=1, expert_tokens_num_flag=True)
        >>> rows.flatten().tolist(), places.tolist(), counts.tolist()
        ([1.0, 2.0, 0.0, 1.0, 0.0, 0.0], [2, -1, 0, 3, -1, 1], [2, 2])

    Source: torch_npu (op-plugin) npu_moe_init_routing_v2; CANN aclnnMoeInitRoutingV3.
    """
    attributes = Attributes(
        active_num=active_num,
        expert_capacity=expert_capacity,
        expert_num=expert_num,
        drop_pad_mode=drop_pad_mode,
        expert_tokens_num_type=expert_tokens_num_type,
        expert_tokens_num_flag=expert_tokens_num_flag,
        quant_mode=quant_mode,
        active_expert_range=active_expert_range,
        row_idx_type=row_idx_type,
    )
    attributes.check()
    check_inputs(x, expert_idx, scale, offset, attributes)
    if x_dtype not in (None, x.dtype):
        raise AscendOperatorError(INVALID, f"x_dtype={x_dtype} reinterprets x, which is not offered: leave it None.")
    if strict:
        check_limits(x, expert_idx, scale, attributes)
    local_NK = _local_experts(expert_idx, attributes)
    places = _places(local_NK, attributes)
    rows, row_scale = _moved(x, scale, offset, places, attributes)
    if attributes.capacity is not None:
        rows = rows.view(attributes.num_experts, attributes.capacity, x.shape[1])
    counts = _counted(local_NK, attributes)
    return rows, places.row_idx.to(torch.int32), counts, row_scale


class _Places(NamedTuple):
    """Of the rows that are given: the slot ``[R]``, its inverse ``[N, K]``, the expert ``[R]`` (counted from the first
    active one, 0 for a row of padding); and the row index that is returned."""

    slot: Tensor
    inverse: Tensor
    expert: Tensor
    row_idx: Tensor


def _local_experts(expert_idx: Tensor, attributes: Attributes) -> Tensor:
    """The active experts counted from the first of them; -1 for all others."""
    active_NK = (expert_idx >= attributes.start) & (expert_idx < attributes.end)
    return torch.where(active_NK, expert_idx - attributes.start, EMPTY)


def _places(local_NK: Tensor, attributes: Attributes) -> _Places:
    width = max(1, attributes.end - attributes.start)
    capacity = attributes.capacity
    places = dispatch_plan(local_NK, width, capacity=capacity, fill=capacity is not None)
    num_slots = local_NK.numel()
    num_rows = attributes.num_rows(num_slots)
    row_idx = places.inverse.reshape(-1)
    if attributes.row_idx_type != GATHER:
        row_idx = padded_places(places.slot, num_slots)
    inverse_NK = places.inverse
    if num_rows < num_slots and capacity is None:
        inverse_NK = torch.where(inverse_NK < num_rows, inverse_NK, EMPTY)
    slot_R = padded_places(places.slot, num_rows)
    expert_R = local_NK.new_zeros(num_rows)
    if num_slots:
        expert_R = torch.where(slot_R < 0, 0, local_NK.reshape(-1)[slot_R.clamp(min=0)])
    return _Places(slot_R, inverse_NK, expert_R, row_idx)


def _moved(
    x: Tensor, scale: Tensor | None, offset: Tensor | None, places: _Places, attributes: Attributes
) -> tuple[Tensor, Tensor]:
    """The rows and the scale of each row."""
    rows_RH = permute(x if attributes.quant_mode == NO_QUANTIZATION else x.detach(), places.slot, places.inverse)
    no_scale_R = torch.zeros(places.slot.shape[0], dtype=torch.float32, device=x.device)
    if attributes.quant_mode == NO_QUANTIZATION:
        if scale is None:
            return rows_RH, no_scale_R
        return rows_RH, permute(scale[:, None], places.slot, places.inverse)[:, 0]
    if attributes.quant_mode == DYNAMIC:
        quantized = dynamic_int8(rows_RH, _smooth_rows(scale, places))
        return quantized.rows, quantized.scale
    assert scale is not None and offset is not None
    rows_RH = static_int8(rows_RH, scale, offset)
    # The offset must not reach the rows of padding.
    return rows_RH.masked_fill((places.slot < 0)[:, None], 0), no_scale_R


def _smooth_rows(scale: Tensor | None, places: _Places) -> Tensor | None:
    """What each row is multiplied by before it is quantised; None for nothing."""
    if scale is None or scale.shape[0] == 1:
        return scale
    # No expert, no row that is not of padding.
    return scale[places.expert] if scale.shape[0] else None


def _counted(local_NK: Tensor, attributes: Attributes) -> Tensor:
    """The rows of the active experts before any are dropped, in the form that was asked for."""
    width = attributes.end - attributes.start
    counts_E = count_assignments(local_NK.to(torch.int64), max(1, width))[:width]
    if not attributes.expert_tokens_num_flag:
        counts_E = torch.zeros_like(counts_E)
    if attributes.expert_tokens_num_type == KEY_VALUE:
        return _pairs(counts_E, attributes)
    return counts_E.cumsum(0) if attributes.expert_tokens_num_type == CUMULATIVE else counts_E


def _pairs(counts_E: Tensor, attributes: Attributes) -> Tensor:
    """``[E, 2]``: expert and rows of the experts that have any, in order, then zeros."""
    first_E = torch.argsort((counts_E == 0).to(torch.int8), stable=True)
    counts_E = counts_E[first_E]
    expert_E = torch.where(counts_E > 0, first_E + attributes.start, 0)
    pairs_E2 = torch.stack([expert_E, counts_E], dim=1)
    missing = attributes.num_experts - counts_E.shape[0]
    return torch.cat([pairs_E2, pairs_E2.new_zeros(missing, 2)])
