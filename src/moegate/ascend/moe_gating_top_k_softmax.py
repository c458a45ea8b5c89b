"""``npu_moe_gating_top_k_softmax``: softmax, then top-k (CANN's MoeGatingTopKSoftmax)."""

import torch
from torch import Tensor

from moegate.ascend.attributes import check_finished, check_integers, check_scores_input
from moegate.ascend.compat import ASCEND, Compat, check_compat
from moegate.ascend.device import device_operator
from moegate.ascend.limits import INVALID, check_device_dtype, device_only, refuse_unless
from moegate.ops.topk_gate import topk_gate

__all__ = ["npu_moe_gating_top_k_softmax"]

MAX_K = 1024
"""The greatest ``k`` that the kernels take."""


def npu_moe_gating_top_k_softmax(
    x: Tensor, finished: Tensor | None = None, k: int = 1, *, strict: bool = False, compat: Compat = ASCEND
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` greatest probabilities of each row, as ``torch_npu.npu_moe_gating_top_k_softmax`` gives them.

    The softmax goes over all experts, in float32; nothing is renormalised; ties go to the lowest index. On an Ascend
    device the call goes to ``torch_npu``.

    Args:
        x: ``[N, E]`` or ``[B, S, E]`` logits.
        finished: bool, one value per row. A finished row has the index ``E`` in each slot, which is no expert; its
            weights and ``row_idx`` are as ever.
        k: experts per row, from 0 to E.
        strict: whether to refuse what the devices refuse.
        compat: which behaviour to take where Ascend and moegate differ.

    Returns:
        ``y [..., k]`` in the dtype of ``x``, differentiable; ``expert_idx [..., k]`` int32; ``row_idx [..., k]`` int32,
        where slot ``j`` of row ``i`` holds ``j * N + i``: the slots are numbered column by column.

    Raises:
        AscendOperatorError: for an argument without a meaning, or with ``strict`` for one beyond the devices' limits.
        TypeError: when an argument is no tensor or no integer.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
        >>> _, expert_idx, row_idx = npu_moe_gating_top_k_softmax(x, torch.tensor([False, True]), k=2)
        >>> expert_idx.tolist(), row_idx.tolist()
        ([[1, 2], [3, 3]], [[0, 2], [1, 3]])

    Source:
        CANN ops-transformer, ``moe/moe_gating_top_k_softmax``.
    """
    check_softmax_input(x, finished, k)
    check_compat(compat)
    if compat is ASCEND and (operator := device_operator("npu_moe_gating_top_k_softmax", x)) is not None:
        on_device: tuple[Tensor, Tensor, Tensor] = operator(x, finished, k)
        return on_device
    if strict:
        check_softmax_limits(x, k)
    y, expert_idx = softmax_gate(x, finished, k, "softmax", compat)
    return y, expert_idx, _row_idx(expert_idx, compat)


def check_softmax_input(x: Tensor, finished: Tensor | None, k: int) -> None:
    """Raises unless the arguments that both versions share have a meaning."""
    check_scores_input(x, dims=(2, 3))
    check_integers((k,), ("k",))
    refuse_unless(0 <= k <= x.shape[-1], INVALID, "k must be from 0 to the {} experts, got {}.", x.shape[-1], k)
    if finished is not None:
        check_finished(finished, tuple(x.shape[:-1]), x)


def check_softmax_limits(x: Tensor, k: int) -> None:
    """Raises when the devices would refuse the arguments that both versions share."""
    check_device_dtype("x", x)
    device_only(k <= MAX_K, INVALID, "k must be at most {}, got {}.", MAX_K, k)


def softmax_gate(x: Tensor, finished: Tensor | None, k: int, score: str, compat: Compat) -> tuple[Tensor, Tensor]:
    """``y`` and ``expert_idx`` of both versions, of the leading shape of ``x``."""
    rows = x.shape[:-1]
    if k == 0 or x.numel() == 0:
        return x.new_zeros((*rows, k)), torch.zeros((*rows, k), dtype=torch.int32, device=x.device)
    masked = finished is not None and compat.finished == "empty"
    gated = topk_gate(
        x.reshape(-1, x.shape[-1]),
        top_k=int(k),
        score=score,
        # After the selection the softmax leaves nothing to rank but the logits.
        rank_by="logits" if score == "softmax_selected" else compat.rank_by,
        index_dtype=torch.int32,
        token_mask_T=~finished.reshape(-1) if masked and finished is not None else None,
    )
    y, expert_idx = gated.weights.view(*rows, k), gated.index.view(*rows, k)
    if finished is not None and not masked:
        expert_idx = expert_idx.masked_fill(finished[..., None], x.shape[-1])
    return (y.to(x.dtype) if compat.y_dtype == "input" else y), expert_idx


def _row_idx(expert_idx: Tensor, compat: Compat) -> Tensor:
    slots = torch.arange(expert_idx.numel(), dtype=torch.int32, device=expert_idx.device)
    if compat.row_idx == "column" and expert_idx.numel() > 0:
        slots = slots.view(expert_idx.shape[-1], -1).t().contiguous()
    return slots.view(expert_idx.shape)
