"""``npu_moe_gating_top_k_backward``: the gradient of the gate from its scores (CANN's MoeGatingTopKBackward)."""

import torch
from torch import Tensor

from moegate.ascend.attributes import check_ids, check_integers, check_range, check_scores_input, float32_attribute
from moegate.ascend.device import device_operator
from moegate.ascend.limits import (
    INVALID,
    TILING,
    check_device_dtype,
    check_not_empty,
    device_only,
    refuse_unless,
)
from moegate.ascend.moe_gating_top_k import MAX_EXPERTS

__all__ = ["npu_moe_gating_top_k_backward"]

_SOFTMAX, _SIGMOID, _SQRT_SOFTPLUS = 0, 1, 2


def npu_moe_gating_top_k_backward(
    x_norm: Tensor,
    grad_y: Tensor,
    expert_idx: Tensor,
    *,
    renorm: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
    strict: bool = False,
) -> Tensor:
    """The gradient with respect to ``x`` of ``npu_moe_gating_top_k``, from the scores that its ``out`` holds.

    The device knows the sigmoid alone, although its default is 0; here all scores have their gradient. The forward
    here is differentiable by itself and needs neither this function nor ``out_flag``. In float32; float64 stays
    float64. On an Ascend device the call goes to ``torch_npu``.

    Args:
        x_norm: ``[T, E]``, the third output of the forward with ``out_flag=True``.
        grad_y: ``[T, k]``, the gradient of the first.
        expert_idx: ``[T, k]`` integers, the second.
        renorm: as in the forward.
        norm_type: as in the forward.
        routed_scaling_factor: as in the forward.
        eps: as in the forward.
        strict: whether to refuse what the devices refuse.

    Returns:
        ``[T, E]`` in the dtype of ``grad_y``.

    Raises:
        AscendOperatorError: for arguments that don't fit, or with ``strict`` for those beyond the devices' limits.

    Example:
        >>> import torch
        >>> x_norm, grad_y = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[1.0, 0.0]])
        >>> expert_idx = torch.tensor([[0, 1]], dtype=torch.int32)
        >>> npu_moe_gating_top_k_backward(x_norm, grad_y, expert_idx, norm_type=1).tolist()
        [[0.1111111044883728, -0.1666666716337204, 0.0]]

    Source:
        CANN ops-transformer, ``moe/moe_gating_top_k_backward``.
    """
    check_scores_input(x_norm)
    check_integers((renorm, norm_type), ("renorm", "norm_type"))
    operator = device_operator("npu_moe_gating_top_k_backward", x_norm)
    if operator is not None:
        on_device: Tensor = operator(
            x_norm, grad_y, expert_idx, renorm=renorm, norm_type=norm_type,
            routed_scaling_factor=routed_scaling_factor, eps=eps,
        )  # fmt: skip
        return on_device
    _check(x_norm, grad_y, expert_idx, renorm, norm_type)
    if strict:
        _check_limits(x_norm, grad_y, norm_type)
    wide = torch.float64 if x_norm.dtype == torch.float64 else torch.float32
    scores_TE, index_TK = x_norm.to(wide), expert_idx.to(torch.int64)
    grad_TK = grad_y.to(wide) * float32_attribute("routed_scaling_factor", routed_scaling_factor)
    if norm_type != _SOFTMAX or renorm == 1:
        chosen_TK = scores_TE.gather(-1, index_TK)
        divisor_T1 = chosen_TK.sum(dim=-1, keepdim=True) + float32_attribute("eps", eps)
        mean_T1 = (chosen_TK / divisor_T1 * grad_TK).sum(dim=-1, keepdim=True)
        grad_TK = (grad_TK - mean_T1) / divisor_T1
    # Added, not stored: a table of the hash mode may name an expert twice.
    grad_TE = torch.zeros_like(scores_TE).scatter_add(-1, index_TK, grad_TK)
    return _through_score(scores_TE, grad_TE, norm_type).to(grad_y.dtype)


def _through_score(scores_TE: Tensor, grad_TE: Tensor, norm_type: int) -> Tensor:
    """From the gradient of the scores to that of the logits, by the scores alone."""
    if norm_type == _SOFTMAX:
        return scores_TE * (grad_TE - (grad_TE * scores_TE).sum(dim=-1, keepdim=True))
    if norm_type == _SIGMOID:
        return scores_TE * (1 - scores_TE) * grad_TE
    # softplus is s², so the sigmoid of the logit is 1 - exp(-s²); where s is 0, so is the slope.
    slope_TE = -torch.expm1(-scores_TE.square()) / (2 * scores_TE)
    return slope_TE.masked_fill(scores_TE == 0, 0.0) * grad_TE


def _check(x_norm: Tensor, grad_y: Tensor, expert_idx: Tensor, renorm: int, norm_type: int) -> None:
    refuse_unless(norm_type in (0, 1, 2), TILING, "norm_type must be 0, 1 or 2, got {}.", norm_type)
    refuse_unless(renorm in (0, 1), TILING, "renorm must be 0 or 1, got {}.", renorm)
    if not isinstance(grad_y, Tensor):
        raise TypeError(f"grad_y must be a tensor [T, k], got {type(grad_y).__name__}.")
    check_ids("expert_idx", expert_idx, x_norm)
    num_tokens, num_experts = x_norm.shape
    refuse_unless(grad_y.is_floating_point(), INVALID, "grad_y must be floating point, got {}.", grad_y.dtype)
    refuse_unless(
        grad_y.device == x_norm.device, INVALID, "grad_y is on {} and x_norm on {}.", grad_y.device, x_norm.device
    )
    refuse_unless(
        grad_y.ndim == 2 and grad_y.shape == expert_idx.shape and grad_y.shape[0] == num_tokens,
        INVALID,
        "grad_y and expert_idx must both be [{}, k], got {}, {}.",
        num_tokens,
        grad_y.shape,
        expert_idx.shape,
    )
    refuse_unless(
        1 <= grad_y.shape[1] <= num_experts, TILING, "k must be from 1 to {}, got {}.", num_experts, grad_y.shape[1]
    )
    check_range("expert_idx", expert_idx, num_experts)


def _check_limits(x_norm: Tensor, grad_y: Tensor, norm_type: int) -> None:
    check_not_empty("x_norm", x_norm)
    check_device_dtype("grad_y", grad_y)
    device_only(x_norm.dtype == torch.float32, INVALID, "x_norm must be float32, got {}.", x_norm.dtype)
    device_only(
        norm_type == _SIGMOID, TILING, "norm_type must be 1, the only score with a backward; got {}.", norm_type
    )
    device_only(
        2 <= x_norm.shape[1] <= MAX_EXPERTS,
        TILING,
        "x_norm must have from 2 to {} experts, got {}.",
        MAX_EXPERTS,
        x_norm.shape[1],
    )
