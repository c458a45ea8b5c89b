"""What the operators of the gate refuse on a GPU: all that would let a kernel read or write outside of its tensors.

``moegate.ops.topk_gate.topk_gate`` refuses it earlier, and says more; this is for who calls an operator itself. What
would take a look at the values, an index that is no expert, is no error on a GPU.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from moegate.ops.topk_gate.options import Options, mode_of

_MOST_EXPERTS = 2**31 - 65
# float64 is the reference's: moegate.ops.topk_gate.topk_gate never takes it to an operator.
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_gate(logits_TE: Tensor, bias_E: Tensor | None, token_mask_T: Tensor | None, options: Options) -> None:
    """Raises a ``RuntimeError`` unless the arguments of the forward operators fit each other."""
    _check_dim("logits", logits_TE, 2)
    if logits_TE.dtype not in _FLOATS:
        raise RuntimeError(f"logits must be float32, bfloat16 or float16, got {logits_TE.dtype}.")
    num_tokens, num_experts = logits_TE.shape
    check_options(num_experts, options)
    if bias_E is not None:
        _check_like("bias", bias_E, 1, logits_TE.device)
        _check_dtype("bias", bias_E, torch.float32)
        if bias_E.shape[0] != num_experts:
            raise RuntimeError(f"bias must hold one value for each of {num_experts} experts, got {bias_E.shape[0]}.")
    if token_mask_T is not None:
        _check_like("token_mask", token_mask_T, 1, logits_TE.device)
        _check_dtype("token_mask", token_mask_T, torch.bool)
        _check_one_a_token("token_mask", token_mask_T, num_tokens)


@lru_cache(maxsize=1024)
def check_options(num_experts: int, options: Options) -> None:
    """Raises a ``RuntimeError`` unless so many experts can be chosen from so many groups."""
    top_k, num_groups, groups_kept = options[:3]
    by_top2_sum = mode_of(options.mode).groups_by_top2_sum
    _check_factors(options.eps, options.scale)
    if not 1 <= num_experts <= _MOST_EXPERTS:
        raise RuntimeError(f"logits must have from 1 to 2^31 - 65 experts, got {num_experts}.")
    if not 1 <= top_k <= num_experts:
        raise RuntimeError(f"top_k={top_k} is out of range: choose from 1 to {num_experts}.")
    if num_groups < 1 or num_experts % num_groups:
        raise RuntimeError(f"{num_experts} experts do not divide into num_groups={num_groups} equal groups.")
    if not 1 <= groups_kept <= num_groups:
        raise RuntimeError(f"groups_kept={groups_kept} is out of range: choose from 1 to {num_groups}.")
    size = num_experts // num_groups
    if top_k > groups_kept * size:
        raise RuntimeError(f"top_k={top_k} exceeds the {groups_kept * size} experts of {groups_kept} groups of {size}.")
    if by_top2_sum and size < 2:
        raise RuntimeError("A sum of two needs groups of at least 2 experts.")


def check_chosen(index_TK: Tensor, chosen_TK: Tensor, **grads: Tensor | None) -> None:
    """Raises a ``RuntimeError`` unless all are of the shape ``[T, K]`` of the index, and float32 but for it."""
    _check_dim("index", index_TK, 2)
    _check_dim("chosen", chosen_TK, 2)
    if index_TK.dtype not in (torch.int32, torch.int64):
        raise RuntimeError(f"index must be int32 or int64, got {index_TK.dtype}.")
    for name, tensor in {"chosen": chosen_TK, **grads}.items():
        if tensor is not None:
            _check_like(name, tensor, 2, index_TK.device)
            _check_dtype(name, tensor, torch.float32)
            if tensor.shape != index_TK.shape:
                raise RuntimeError(
                    f"{name} must have the shape of the index, {list(index_TK.shape)}, got {list(tensor.shape)}."
                )


def check_dense(
    logsumexp_T: Tensor, grad_logsumexp_T: Tensor | None, logits_TE: Tensor | None, shape: tuple[int, int]
) -> None:
    """Raises a ``RuntimeError`` unless a gradient of this shape can go through a logsumexp."""
    _check_dim("logsumexp", logsumexp_T, 1)
    for name, tensor in (("logsumexp", logsumexp_T), ("grad_logsumexp", grad_logsumexp_T)):
        if tensor is not None:
            _check_like(name, tensor, 1, logsumexp_T.device)
            _check_dtype(name, tensor, torch.float64)
            _check_one_a_token(name, tensor, shape[0])
    if logits_TE is None:
        raise RuntimeError("The gradient of a logsumexp needs the logits, got none.")
    _check_like("logits", logits_TE, 2, logsumexp_T.device)
    if logits_TE.shape != shape:
        raise RuntimeError(f"logits must have the shape {list(shape)}, got {list(logits_TE.shape)}.")


def check_gradient(num_experts: int, dtype: torch.dtype, eps: float, scale: float) -> None:
    """Raises a ``RuntimeError`` unless there can be a gradient of so many experts."""
    _check_factors(eps, scale)
    if dtype not in _FLOATS:
        raise RuntimeError(f"dtype must be float32, bfloat16 or float16, got {dtype}.")
    if not 1 <= num_experts <= _MOST_EXPERTS:
        raise RuntimeError(f"num_experts must be from 1 to 2^31 - 65, got {num_experts}.")


def _check_factors(eps: float, scale: float) -> None:
    if not eps >= 0.0:
        raise RuntimeError(f"eps must not be negative or NaN, got {eps}.")
    if math.isnan(scale):
        raise RuntimeError(f"scale must be a number, got {scale}.")


def _check_like(name: str, tensor: Tensor, dim: int, device: torch.device) -> None:
    _check_dim(name, tensor, dim)
    if tensor.device != device:
        raise RuntimeError(f"{name} must be on {device} like the others, got {tensor.device}.")


def _check_dim(name: str, tensor: Tensor | None, dim: int) -> None:
    if tensor is None:  # which the dispatcher lets through for any tensor
        raise RuntimeError(f"{name} is missing.")
    if tensor.ndim != dim:
        raise RuntimeError(f"{name} must have {dim} dimensions, got {tensor.ndim}.")


def _check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise RuntimeError(f"{name} must be {dtype}, got {tensor.dtype}.")


def _check_one_a_token(name: str, tensor: Tensor, num_tokens: int) -> None:
    if tensor.shape[0] != num_tokens:
        raise RuntimeError(f"{name} must hold one value for each of {num_tokens} tokens, got {tensor.shape[0]}.")
