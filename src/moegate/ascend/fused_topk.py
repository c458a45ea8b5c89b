"""``moe_fused_topk``: sigmoid, groups by the sum of their best, top-k under a mask of zeros (CANN's MoeFusedTopk)."""

import torch
from torch import Tensor

from moegate.ascend.attributes import (
    check_ids,
    check_integers,
    check_per_expert,
    check_scores_input,
    float32_attribute,
)
from moegate.ascend.compat import ASCEND, Compat, check_compat
from moegate.ascend.gathered import gathered_weights
from moegate.ascend.limits import (
    INVALID,
    NULL_POINTER,
    AscendOperatorError,
    check_device_dtype,
    check_not_empty,
    device_only,
    refuse_unless,
)
from moegate.ascend.limits_rows import readable
from moegate.ops.ordered_topk import ordered_topk
from moegate.ops.portable import portable_scores
from moegate.parts import check_bool

__all__ = ["moe_fused_topk"]

MAX_EXPERTS = 1024
MAX_GROUPS = 256
MAX_MAPPINGS = 128


def moe_fused_topk(  # noqa: PLR0913, PLR0917 - the operator's own signature
    x: Tensor,
    add_num: Tensor,
    mapping_num: Tensor | None,
    mapping_table: Tensor | None,
    group_num: int,
    group_topk: int,
    top_n: int,
    top_k: int,
    activate_type: int = 0,
    is_norm: bool = True,
    scale: float = 1.0,
    enable_expert_mapping: bool = False,
    *,
    strict: bool = False,
    compat: Compat = ASCEND,
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` experts of each row and their weights, as CANN's ``aclnnMoeFusedTopk`` gives them.

    Per row, in float32: ``p = sigmoid(x)`` → ``s = p + add_num`` → the ``group_topk`` groups with the greatest sum of
    their ``top_n`` best → ``s`` of all other groups becomes 0 → the ``top_k`` greatest, ties to the lowest index →
    gather ``p``. So an expert of a dropped group beats a kept one whose ``s`` is negative. ``torch_npu`` has no
    function for this operator; the arguments have the order of the C interface.

    Args:
        x: ``[T, E]`` logits.
        add_num: ``[E]``, added for the selection only.
        mapping_num: ``[E]`` int32, how many replicas an expert has; read with ``enable_expert_mapping``.
        mapping_table: ``[E, M]`` int32, their ids.
        group_num: groups of neighbouring experts.
        group_topk: how many groups are kept.
        top_n: how many experts of a group its score sums.
        top_k: experts per row.
        activate_type: 0, the sigmoid.
        is_norm: whether to divide by the sum, without an eps, and to multiply by ``scale``.
        scale: a factor on the weights, with ``is_norm`` only.
        enable_expert_mapping: whether expert ``e`` of row ``t`` becomes
            ``mapping_table[e, t % max(1, mapping_num[e])]``.
        strict: whether to refuse what the devices refuse.
        compat: which behaviour to take where Ascend and moegate differ.

    Returns:
        ``y [T, top_k]`` float32, differentiable, and ``indices [T, top_k]`` int32.

    Raises:
        AscendOperatorError: for an argument without a meaning, or with ``strict`` for one beyond the devices' limits.
        TypeError: when an argument is no tensor or no number.

    Example:
        >>> import torch
        >>> x, add_num = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.full((4,), -1.0)
        >>> y, indices = moe_fused_topk(x, add_num, None, None, group_num=2, group_topk=1, top_n=2, top_k=2)
        >>> indices.tolist()  # all s are negative, so the zeros of the dropped group win
        [[2, 3]]

    Source:
        CANN ops-transformer, ``moe/moe_fused_topk``.
    """
    check_scores_input(x)
    check_per_expert("add_num", add_num, x.shape[1], x)
    sizes = (group_num, group_topk, top_n, top_k)
    check_integers((*sizes, activate_type), ("group_num", "group_topk", "top_n", "top_k", "activate_type"))
    check_bool("is_norm", is_norm)
    check_bool("enable_expert_mapping", enable_expert_mapping)
    check_compat(compat)
    refuse_unless(activate_type == 0, INVALID, "activate_type must be 0, the sigmoid; got {}.", activate_type)
    _check_sizes(x.shape[1], *sizes)
    factor = float32_attribute("scale", scale)
    mapping = _mapping(x, mapping_num, mapping_table) if enable_expert_mapping else None
    if strict:
        _check_limits(x, add_num, group_num, None if mapping is None else mapping[1])
    index_TK = _select(x, add_num, sizes, compat)
    y = gathered_weights(x, index_TK, "sigmoid", 0.0 if is_norm else None, factor if is_norm else 1.0)
    if mapping is not None:
        index_TK = _replicas(index_TK, *mapping)
    return y, index_TK.to(torch.int32)


def _select(x: Tensor, add_num: Tensor, sizes: tuple[int, int, int, int], compat: Compat) -> Tensor:
    group_num, group_topk, top_n, top_k = sizes
    scores_TE = portable_scores(x, "sigmoid")
    scores_TE = scores_TE + add_num.detach().to(scores_TE.dtype)
    if group_topk == group_num:
        return ordered_topk(scores_TE, top_k)
    grouped_TGe: Tensor = scores_TE.unflatten(-1, (group_num, -1))
    grouped_TGe = grouped_TGe.masked_fill(grouped_TGe.isnan(), float("-inf"))
    # In float64 a few float32 numbers add up to the same sum in any order.
    group_TG = grouped_TGe.topk(top_n, dim=-1).values.double().sum(dim=-1).to(scores_TE.dtype)
    kept_TG = torch.zeros_like(group_TG, dtype=torch.bool)
    kept_TG.scatter_(-1, ordered_topk(group_TG, group_topk), True)
    dropped_TE = ~kept_TG.repeat_interleave(x.shape[1] // group_num, dim=-1)
    if compat.dropped_groups == "excluded":
        return ordered_topk(scores_TE, top_k, excluded=dropped_TE)
    return ordered_topk(scores_TE.masked_fill(dropped_TE, 0.0), top_k)


def _replicas(index_TK: Tensor, mapping_num: Tensor, mapping_table: Tensor) -> Tensor:
    """The replica of each chosen expert that serves this row: the rows take turns."""
    row_T1 = torch.arange(index_TK.shape[0], device=index_TK.device)[:, None]
    turn_TK = row_T1 % mapping_num.to(torch.int64).clamp(min=1)[index_TK]
    return mapping_table[index_TK, turn_TK]


def _mapping(x: Tensor, mapping_num: Tensor | None, mapping_table: Tensor | None) -> tuple[Tensor, Tensor]:
    num_experts = x.shape[1]
    if mapping_num is None or mapping_table is None:
        raise AscendOperatorError(NULL_POINTER, "enable_expert_mapping needs both mapping_num and mapping_table.")
    for name, values in (("mapping_num", mapping_num), ("mapping_table", mapping_table)):
        check_ids(name, values, x)
    refuse_unless(
        mapping_num.shape == (num_experts,),
        INVALID,
        "mapping_num must have one value per expert, so ({},); got {}.",
        num_experts,
        mapping_num.shape,
    )
    refuse_unless(
        mapping_table.ndim == 2 and mapping_table.shape[0] == num_experts and mapping_table.shape[1] > 0,
        INVALID,
        "mapping_table must be [{}, replicas], got {}.",
        num_experts,
        mapping_table.shape,
    )
    if readable(mapping_num):
        most = int(mapping_num.max())
        refuse_unless(
            most <= mapping_table.shape[1],
            INVALID,
            "mapping_num names {} replicas, but mapping_table has {} columns.",
            most,
            mapping_table.shape[1],
        )
    return mapping_num, mapping_table


def _check_sizes(num_experts: int, group_num: int, group_topk: int, top_n: int, top_k: int) -> None:
    refuse_unless(
        group_num >= 1 and num_experts % max(1, group_num) == 0,
        INVALID,
        "{} experts don't divide into group_num={}.",
        num_experts,
        group_num,
    )
    for name, value, most in (
        ("group_topk", group_topk, group_num),
        ("top_n", top_n, num_experts // group_num),
        ("top_k", top_k, num_experts),
    ):
        refuse_unless(1 <= value <= most, INVALID, "{} must be from 1 to {}, got {}.", name, most, value)


def _check_limits(x: Tensor, add_num: Tensor, group_num: int, mapping_table: Tensor | None) -> None:
    check_device_dtype("x", x)
    check_not_empty("x", x)
    device_only(add_num.dtype == x.dtype, INVALID, "add_num must be {} like x, got {}.", x.dtype, add_num.dtype)
    device_only(x.shape[1] <= MAX_EXPERTS, INVALID, "x must have at most {} experts, got {}.", MAX_EXPERTS, x.shape[1])
    device_only(group_num <= MAX_GROUPS, INVALID, "group_num must be at most {}, got {}.", MAX_GROUPS, group_num)
    if mapping_table is not None:
        columns = mapping_table.shape[1]
        device_only(
            columns <= MAX_MAPPINGS, INVALID, "mapping_table has at most {} columns, got {}.", MAX_MAPPINGS, columns
        )
