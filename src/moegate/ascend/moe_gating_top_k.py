"""``npu_moe_gating_top_k``: scores, groups, top-k, normalisation and scale in one operator (CANN's MoeGatingTopK)."""

from functools import lru_cache
from math import isnan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moegate.ascend.attributes import (
    check_ids,
    check_integers,
    check_numbers,
    check_per_expert,
    check_range,
    check_scores_input,
    float32_attribute,
)
from moegate.ascend.compat import ASCEND, Compat, check_compat
from moegate.ascend.device import device_operator, given
from moegate.ascend.gathered import gathered_weights
from moegate.ascend.limits import (
    INVALID,
    NULL_POINTER,
    TILING,
    AscendOperatorError,
    check_device_dtype,
    check_not_empty,
    device_only,
    refuse_unless,
)
from moegate.ops.portable import portable_scores
from moegate.ops.topk_gate import topk_gate
from moegate.parts import check_bool

__all__ = ["npu_moe_gating_top_k"]

SCORE_OF_NORM_TYPE = ("softmax", "sigmoid", "sqrt_softplus")
"""The score that each ``norm_type`` stands for."""
MAX_EXPERTS = 2048
"""The most experts that the kernels take."""
MAX_HASH_K = 64
_SORT_WIDTH = 32


class _Attributes(NamedTuple):
    """The attributes of a call, by the operator's names."""

    k: int
    k_group: int
    group_count: int
    group_select_mode: int
    renorm: int
    norm_type: int
    routed_scaling_factor: float
    eps: float


class _Settings(NamedTuple):
    """What the attributes come to: the score, the divisor's eps or None, the scale, what ``topk_gate`` takes."""

    score: str
    eps: float | None
    scale: float
    gate: dict[str, Any]


def npu_moe_gating_top_k(  # noqa: PLR0913 - the operator's own signature
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
    strict: bool = False,
    compat: Compat = ASCEND,
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` experts of each row and their weights, as ``torch_npu.npu_moe_gating_top_k`` gives them.

    Per row, in float32: score ``p`` → ``s = p + bias`` → the best ``k_group`` of ``group_count`` groups → the ``k``
    greatest ``s`` in them, ties to the lowest index → gather ``p`` → divide by the sum plus ``eps`` → scale → cast. On
    an Ascend device the call goes to ``torch_npu``.

    Args:
        x: ``[T, E]`` logits.
        k: experts per row.
        bias: ``[E]``, added for the selection only.
        input_ids: ``[T]`` int32 or int64: with ``tid2eid``, the hash mode, which looks experts up and sorts nothing.
        tid2eid: ``[V, k]`` int32 or int64, the experts of each id.
        k_group: how many groups are kept.
        group_count: groups of neighbouring experts.
        group_select_mode: a group scores by its maximum (0) or by the sum of its two greatest (1).
        renorm: for the softmax, whether to divide by the sum (1); the other scores always are.
        norm_type: the score: softmax (0), sigmoid (1), square root of softplus (2). Old releases had 1 as the default.
        out_flag: whether the third output holds the scores.
        routed_scaling_factor: a factor on the weights.
        eps: added to the sum.
        strict: whether to refuse what the devices refuse.
        compat: which behaviour to take where Ascend and moegate differ.

    Returns:
        ``y [T, k]`` in the dtype of ``x``, differentiable; ``expert_idx [T, k]`` int32; ``out [T, E]`` float32, the
        scores without bias and without a gradient. Without ``out_flag``, where the device leaves memory as it was,
        ``out`` is NaN throughout, and takes no memory.

    Raises:
        AscendOperatorError: for an argument without a meaning, or with ``strict`` for one beyond the devices' limits.
        TypeError: when an argument is no tensor or no number.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 2.0, 1.0, 1.0]])
        >>> y, expert_idx, _ = npu_moe_gating_top_k(x, 2, norm_type=1, routed_scaling_factor=2.5)
        >>> expert_idx.tolist(), expert_idx.dtype
        ([[1, 2]], torch.int32)
        >>> round(y.sum().item(), 4)
        2.5

    Source:
        CANN ops-transformer, ``moe/moe_gating_top_k``; the gate of DeepSeek-V3, arXiv 2412.19437.
    """
    check_scores_input(x)
    values = (k, k_group, group_count, group_select_mode, renorm, norm_type, routed_scaling_factor, eps)
    if compat is ASCEND and (operator := device_operator("npu_moe_gating_top_k", x)) is not None:
        # The norm_type is always passed on: its default was another once.
        tensors, attributes = given(bias=bias, input_ids=input_ids, tid2eid=tid2eid), _Attributes(*values)
        on_device: tuple[Tensor, Tensor, Tensor] = operator(x, out_flag=out_flag, **tensors, **attributes._asdict())
        return on_device
    settings = _settings(x.shape[1], compat, values)
    if bias is not None:
        check_per_expert("bias", bias, x.shape[1], x)
    if strict:
        _check_limits(x, bias, input_ids is not None, _Attributes(*values))
    if input_ids is not None or tid2eid is not None:
        y, expert_idx = _by_hash(x, input_ids, tid2eid, k, settings)
    else:
        y, expert_idx = _by_score(x, bias, settings, compat)
    if y.dtype != x.dtype and compat.y_dtype == "input":
        y = y.to(x.dtype)
    return y, expert_idx, _scores_out(x, settings, out_flag, compat)


def _settings(num_experts: int, compat: Compat, values: tuple[Any, ...]) -> _Settings:
    """The settings of a call, remembered: to find them takes longer than a small gate."""
    if compat is not ASCEND:
        check_compat(compat)
    if torch.compiler.is_compiling():
        return _find_settings(num_experts, compat, *values)
    try:
        # The default goes without a name: to hash it takes long.
        return _remembered_settings(num_experts, None if compat is ASCEND else compat, *values)
    except TypeError:
        # Some value can't be hashed, or is of the wrong type: this says which.
        return _find_settings(num_experts, compat, *values)


# Of the types too: True is 1 to a cache, and no integer to the operator.
@lru_cache(maxsize=1024, typed=True)
def _remembered_settings(num_experts: int, compat: Compat | None, *values: Any) -> _Settings:
    return _find_settings(num_experts, ASCEND if compat is None else compat, *values)


def _find_settings(num_experts: int, compat: Compat, *values: Any) -> _Settings:
    check_integers(values[:6], _Attributes._fields)
    check_numbers(values[6:], _Attributes._fields[6:])
    k, k_group, group_count, group_select_mode, renorm, norm_type, routed_scaling_factor, eps = values
    refuse_unless(norm_type in (0, 1, 2), TILING, "norm_type must be 0, 1 or 2, got {}.", norm_type)
    refuse_unless(renorm in (0, 1), TILING, "renorm must be 0 or 1, got {}.", renorm)
    refuse_unless(group_select_mode in (0, 1), TILING, "group_select_mode must be 0 or 1, got {}.", group_select_mode)
    _check_groups(num_experts, k, k_group, group_count)
    normalize = renorm == 1 or (compat.always_normalize and norm_type != 0)
    scale, narrow_eps = float32_attribute("routed_scaling_factor", routed_scaling_factor), float32_attribute("eps", eps)
    refuse_unless(narrow_eps >= 0, TILING, "eps must not be negative or NaN, got {}.", eps)
    refuse_unless(not isnan(scale), TILING, "routed_scaling_factor must be a number, got NaN.")
    # Groups of one expert each select as no groups do.
    grouped = k_group < group_count < num_experts
    score = SCORE_OF_NORM_TYPE[norm_type]
    gate = {
        "top_k": int(k),
        "score": "identity" if score == "sqrt_softplus" and compat.softplus == "naive" else score,
        "num_groups": int(group_count) if grouped else 1,
        "groups_kept": int(k_group) if grouped else 1,
        "group_score": "top2_sum" if grouped and group_select_mode == 1 else "max",
        "renormalize": normalize,
        "eps": narrow_eps,
        "scale": scale,
        "rank_by": compat.rank_by,
        "index_dtype": torch.int32,
    }
    return _Settings(score, narrow_eps if normalize else None, scale, gate)


def _check_groups(num_experts: int, k: int, k_group: int, group_count: int) -> None:
    refuse_unless(group_count >= 1, TILING, "group_count must be at least 1, got {}.", group_count)
    refuse_unless(
        1 <= k_group <= group_count, TILING, "k_group must be from 1 to group_count={}, got {}.", group_count, k_group
    )
    refuse_unless(
        num_experts % group_count == 0, TILING, "{} experts don't divide into group_count={}.", num_experts, group_count
    )
    most = k_group * (num_experts // group_count)
    refuse_unless(1 <= k <= most, TILING, "k must be from 1 to the {} experts of {} groups, got {}.", most, k_group, k)


def _check_limits(x: Tensor, bias: Tensor | None, hashed: bool, attributes: _Attributes) -> None:
    k, k_group, group_count, group_select_mode = attributes[:4]
    num_experts = x.shape[1]
    group_size = num_experts // group_count
    check_device_dtype("x", x)
    check_not_empty("x", x)
    device_only(num_experts <= MAX_EXPERTS, TILING, "x must have at most {} experts, got {}.", MAX_EXPERTS, num_experts)
    if bias is not None:
        device_only(bias.dtype == x.dtype, INVALID, "bias must be {} like x, got {}.", x.dtype, bias.dtype)
    device_only(
        group_size > group_select_mode,
        TILING,
        "group_select_mode=1 needs at least 2 experts a group, even where it selects nothing; got {}.",
        group_size,
    )
    simple = group_count in {k_group, num_experts}
    padded = group_count * -(-group_size // _SORT_WIDTH) * _SORT_WIDTH
    device_only(
        simple or padded <= MAX_EXPERTS,
        TILING,
        "group_count times the group's size, rounded up to 32, must be at most {}; got {}.",
        MAX_EXPERTS,
        padded,
    )
    if hashed:
        device_only(k <= MAX_HASH_K, TILING, "k must be at most {} with tid2eid, got {}.", MAX_HASH_K, k)
        device_only(simple, TILING, "tid2eid goes without groups: k_group must be group_count, or a group one expert.")


def _by_score(x: Tensor, bias: Tensor | None, settings: _Settings, compat: Compat) -> tuple[Tensor, Tensor]:
    naive = settings.score == "sqrt_softplus" and compat.softplus == "naive"
    gated = topk_gate(_naive_sqrt_softplus(x) if naive else x, bias_E=bias, **settings.gate)
    return gated.weights, gated.index


def _naive_sqrt_softplus(x: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide.exp() + 1.0).log().sqrt()


def _by_hash(
    x: Tensor, input_ids: Tensor | None, tid2eid: Tensor | None, k: int, settings: _Settings
) -> tuple[Tensor, Tensor]:
    if input_ids is None or tid2eid is None:
        raise AscendOperatorError(NULL_POINTER, "input_ids and tid2eid must be both provided or both omitted.")
    _check_table(x, input_ids, tid2eid, k)
    # An index of int32 selects rows too.
    expert_idx = tid2eid[input_ids].to(torch.int32)
    return gathered_weights(x, expert_idx, settings.score, settings.eps, settings.scale), expert_idx


def _check_table(x: Tensor, input_ids: Tensor, tid2eid: Tensor, k: int) -> None:
    num_rows, num_experts = x.shape
    check_ids("input_ids", input_ids, x)
    check_ids("tid2eid", tid2eid, x)
    refuse_unless(
        input_ids.shape == (num_rows,),
        INVALID,
        "input_ids must be 1-D with one id per row, so ({},); got {}.",
        num_rows,
        input_ids.shape,
    )
    refuse_unless(
        tid2eid.ndim == 2 and tid2eid.shape[1] == k,
        INVALID,
        "tid2eid must be [ids, k={}], got {}.",
        k,
        tid2eid.shape,
    )
    check_range("input_ids", input_ids, tid2eid.shape[0])
    check_range("tid2eid", tid2eid, num_experts)


def _scores_out(x: Tensor, settings: _Settings, out_flag: bool, compat: Compat) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not out_flag:
        # Nothing is promised of this memory on the device. NaN shows a reader that relies on it.
        return x.new_full((), torch.nan, dtype=wide).expand_as(x)
    check_bool("out_flag", out_flag)
    if settings.score == "sqrt_softplus" and compat.softplus == "naive":
        return _naive_sqrt_softplus(x.detach())
    return portable_scores(x, settings.score)
