"""npu_moe_finalize_routing: a token's output from its experts' rows, with scales, biases and shared experts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import (
    FLOATS,
    check_float,
    check_index,
    check_mode,
    check_tensor,
    check_values,
    require,
    require_types,
)
from moegate.ascend.rows import sum_rows, wide
from moegate.ascend.slot_terms import SlotTerms
from moegate.ascend.special_experts import NONE, SpecialExperts, expert_range
from moegate.parts import check_positive_integer

_NAME = "npu_moe_finalize_routing"
_BY_COLUMN, _PADDED = (0, 1), (1, 3)


def npu_moe_finalize_routing(  # noqa: PLR0913, PLR0917 - the signature of torch_npu
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    expert_for_source_row: Tensor | None,
    drop_pad_mode: int = 0,
    k: int = 1,
    *,
    x: Tensor | None = None,
    alpha1: Tensor | None = None,
    alpha2: Tensor | None = None,
    v: Tensor | None = None,
    zero_expert_range: Sequence[int] | None = None,
    copy_expert_range: Sequence[int] | None = None,
    constant_expert_range: Sequence[int] | None = None,
    strict: bool = False,
) -> Tensor:
    """``out[i] = skip1[i] + skip2[i] + Σ_j scales[i, j] · (rows[index(i, j)] + bias[expert[i, j]])``.

    Added in this order in float32 (float64 in float64) and rounded once; differentiable in every floating-point
    argument. The arguments after the star are those of CANN's third and fourth version, which torch_npu does not have.

    Args:
        expanded_permuted_rows: ``[R, H]``, or ``[E, C, H]`` in drop-pad mode: what the experts gave.
        skip1, skip2: ``[N, H]``, such as the outputs of shared experts; the second only with the first.
        bias: ``[E, H]``, with ``expert_for_source_row``.
        scales: ``[N, K]``; None for 1.
        expanded_src_to_dst_row: ``[N · K]`` int32, the row of each slot.
        expert_for_source_row: ``[N, K]`` int32; an id that has no bias, such as a finished token's, adds none.
        drop_pad_mode: 0 and 1 find slot ``j`` of token ``i`` at ``j · N + i`` (by column, as
            ``npu_moe_init_routing`` gives it), 2 and 3 at ``i · K + j`` (as ``npu_moe_init_routing_v2`` does);
            1 and 3 are the drop-pad modes.
        k: ``K`` where there are no scales.
        x: ``[N, H]``, the tokens, for copy and constant experts.
        alpha1, alpha2, v: ``[constant experts, H]``: such an expert gives ``alpha1 · x[i] + alpha2 · v``.
        zero_expert_range, copy_expert_range, constant_expert_range: ``[start, end)`` of expert ids. A zero expert adds
            nothing, not even a bias. The row of a special expert's slot is not looked at.
        strict: raises for what the hardware does not take.

    Returns:
        ``[N, H]`` in the type of the rows. A row of -1 is 0 (and its bias is added) in all modes; on the device -1 is
        legal in the drop-pad modes only. In the modes 0 and 2 a row beyond those that are there, which
        ``active_num`` cut off, adds nothing.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit.
        AscendOperatorError: in strict mode, for a type or a value that the hardware does not take.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> index = torch.tensor([0, 2, 3, 1], dtype=torch.int32)
        >>> scales = torch.tensor([[0.5, 0.5], [1.0, 10.0]])
        >>> npu_moe_finalize_routing(rows, None, None, None, scales, index, None, 2).flatten().tolist()
        [2.0, 24.0]
        >>> npu_moe_finalize_routing(rows, None, None, None, scales, index, None, 0).flatten().tolist()
        [2.5, 23.0]

    Source: torch_npu (op-plugin) npu_moe_finalize_routing; CANN aclnnMoeFinalizeRoutingV2 to V4.
    """
    check_mode("drop_pad_mode", drop_pad_mode, (0, 1, 2, 3))
    rows_RH, index_NK = _rows_and_index(expanded_permuted_rows, scales, expanded_src_to_dst_row, drop_pad_mode, k)
    terms = SlotTerms(
        rows_RH,
        index_NK,
        scales,
        expert_for_source_row,
        bias,
        SpecialExperts(
            expert_range("zero_expert_range", zero_expert_range),
            expert_range("copy_expert_range", copy_expert_range),
            expert_range("constant_expert_range", constant_expert_range),
            x,
            alpha1,
            alpha2,
            v,
        ),
    )
    _check(terms, skip1, skip2)
    if strict:
        _check_limits(expanded_permuted_rows, expanded_src_to_dst_row, drop_pad_mode, terms, skip1, skip2)
    return _total(terms, skip1, skip2).to(rows_RH.dtype)


def _rows_and_index(
    rows: Tensor, scales: Tensor | None, index: Tensor, drop_pad_mode: int, k: int
) -> tuple[Tensor, Tensor]:
    """The rows ``[R, H]``, and the row of each slot ``[N, K]``."""
    check_float("expanded_permuted_rows", rows)
    if rows.ndim not in (2, 3):
        raise AscendOperatorError(
            INVALID, f"expanded_permuted_rows must be [rows, H] or [E, C, H], got {tuple(rows.shape)}."
        )
    check_index("expanded_src_to_dst_row", index, "slots")
    if scales is not None:
        check_tensor("scales", scales, "tokens", "experts per token")
        check_float("scales", scales)
    check_positive_integer("k", k)
    num_tokens, top_k = (index.numel() // k, k) if scales is None else tuple(scales.shape)
    if num_tokens * top_k != index.numel():
        raise AscendOperatorError(
            INVALID,
            f"expanded_src_to_dst_row has {index.numel()} slots, which are not {num_tokens} tokens with {top_k} each.",
        )
    rows_RH = rows.flatten(0, 1) if rows.ndim == 3 else rows
    most = rows_RH.shape[0] if drop_pad_mode in _PADDED else max(rows_RH.shape[0], index.numel())
    check_values("expanded_src_to_dst_row", index, -1, most - 1, "rows, or -1 for none")
    by_column = drop_pad_mode in _BY_COLUMN
    return rows_RH, index.view(top_k, num_tokens).t() if by_column else index.view(num_tokens, top_k)


def _check(terms: SlotTerms, skip1: Tensor | None, skip2: Tensor | None) -> None:
    num_tokens, top_k = terms.index.shape
    hidden_size = terms.rows.shape[1]
    if skip2 is not None and skip1 is None:
        raise AscendOperatorError(INVALID, "skip2 needs skip1: pass the only one as skip1.")
    for name, skip in (("skip1", skip1), ("skip2", skip2)):
        if skip is not None:
            check_tensor(name, skip, num_tokens, hidden_size)
            check_float(name, skip)
    special = terms.special
    ranges = special is not None and {special.zero, special.copy, special.constant} != {NONE}
    if (terms.bias is not None or ranges) and terms.experts is None:
        raise AscendOperatorError(INVALID, "A bias, and zero, copy and constant experts, need expert_for_source_row.")
    if terms.experts is not None:
        check_index("expert_for_source_row", terms.experts, num_tokens, top_k)
    if terms.bias is not None:
        check_tensor("bias", terms.bias, "experts", hidden_size)
        check_float("bias", terms.bias)
    if special is not None:
        special.check(num_tokens, hidden_size)


def _total(terms: SlotTerms, skip1: Tensor | None, skip2: Tensor | None) -> Tensor:
    special = terms.special
    plain = special is None or {special.zero, special.copy, special.constant} == {NONE}
    if plain and skip1 is None and terms.bias is None:
        return sum_rows(terms.rows, terms.index, terms.scales)
    dtype = wide(terms.rows.dtype)
    start_NH = torch.zeros(terms.index.shape[0], terms.rows.shape[1], dtype=dtype, device=terms.rows.device)
    for skip in (skip1, skip2):
        if skip is not None:
            start_NH = start_NH + skip.to(dtype)
    return terms.added_to(start_NH)


def _check_limits(
    rows: Tensor,
    index: Tensor,
    drop_pad_mode: int,
    terms: SlotTerms,
    skip1: Tensor | None,
    skip2: Tensor | None,
) -> None:
    require_types(_NAME, FLOATS, expanded_permuted_rows=rows, scales=terms.scales)
    alike = {"skip1": skip1, "skip2": skip2, "bias": terms.bias}
    require_types(_NAME, (rows.dtype,), **alike)
    require_types(_NAME, (torch.int32,), expanded_src_to_dst_row=index, expert_for_source_row=terms.experts)
    padded = drop_pad_mode in _PADDED
    require(rows.ndim == (3 if padded else 2), _NAME, "[E, C, H] in the modes 1 and 3, else [rows, H]", rows.shape)
    if not padded and index.numel():
        least = int(index.min())
        require(least >= 0, _NAME, "a row for every slot in the modes 0 and 2 (mode 3 takes -1)", least)
    if terms.bias is not None:
        num_experts, top_k = terms.bias.shape[0], terms.index.shape[1]
        require(num_experts >= top_k, _NAME, f"at least as many experts as a token has, {top_k}", num_experts)
        if terms.experts is not None and terms.experts.numel():
            greatest = int(terms.experts.max())
            require(greatest < num_experts, _NAME, f"expert ids below {num_experts}", greatest)
