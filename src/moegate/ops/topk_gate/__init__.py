"""A token's experts and their weights from its logits, in one pass.

Contract: the eleven rules of selection, as ``moegate.route`` computes them. Descending order, ties to the lowest index,
``-0.0`` like ``+0.0``, NaN last, always ``K`` distinct experts; the bias selects and never weighs; a token with a NaN
logit has NaN weights; masked tokens get ``-1`` and weight 0. Where the order depends on the values of scores (with a
bias, for ``top2_sum``, or by ``rank_by="scores"``) these are the scores of ``moegate.ops.portable``, so that every
device chooses alike. The weights are within 2 ulp of their value in float64. The gradient keeps ``[T, K]`` data and one
number a token; a softmax over all experts that is not renormalised, or a logsumexp, keeps the logits besides.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moegate.ops import library
from moegate.ops.topk_gate.options import Options, keeps_logsumexp, mode_of, options_for
from moegate.ops.topk_gate.reference import (
    Statistics,
    gate,
    topk_gate_backward_reference,
    topk_gate_reference,
    topk_gate_statistics_reference,
)
from moegate.ops.transforms import is_transformed

__all__ = ["Gated", "topk_gate"]

_INPUTS = (
    "Tensor logits, Tensor? bias, Tensor? token_mask, "
    "int top_k, int num_groups, int groups_kept, float eps, float scale, int mode"
)
library.define(f"topk_gate({_INPUTS}) -> (Tensor weights, Tensor index)", topk_gate_reference)
library.define(
    f"topk_gate_statistics({_INPUTS}) "
    "-> (Tensor weights, Tensor index, Tensor counts, Tensor logsumexp, Tensor chosen)",
    topk_gate_statistics_reference,
)
library.define(
    "topk_gate_backward(Tensor? grad_weights, Tensor? grad_logsumexp, Tensor? grad_chosen, Tensor index, "
    "Tensor chosen, Tensor logsumexp, Tensor? logits, int num_experts, ScalarType dtype, float eps, float scale, "
    "int mode) -> Tensor",
    topk_gate_backward_reference,
)


class Gated(NamedTuple):
    """The experts and weights of each token.

    ``weights`` ``[T, K]`` float32; ``index`` ``[T, K]``, ``-1`` for a masked token; ``counts`` ``[E]`` int64 or None:
    tokens per expert; ``logsumexp`` ``[T]`` float32 or None: of each token's logits, 0 for a masked one.
    """

    weights: Tensor
    index: Tensor  # type: ignore[assignment] # a tuple has a method of that name
    counts: Tensor | None
    logsumexp: Tensor | None


def _statistics_fake(  # noqa: PLR0913, PLR0917 - the schema of the operator
    logits_TE: Tensor,
    bias_E: Tensor | None,
    token_mask_T: Tensor | None,
    top_k: int,
    num_groups: int,
    groups_kept: int,
    eps: float,
    scale: float,
    mode: int,
) -> Statistics:
    if logits_TE.ndim != 2:
        raise RuntimeError(f"logits must have 2 dimensions, got {logits_TE.ndim}.")
    num_tokens, num_experts = logits_TE.shape
    for name, values in (("bias", bias_E), ("token_mask", token_mask_T)):
        if values is not None and values.device != logits_TE.device:
            raise ValueError(
                f"{name} is on {values.device} and the logits are on {logits_TE.device}: move one of them."
            )
    choice = mode_of(mode)
    weights_TK = logits_TE.new_empty(num_tokens, top_k, dtype=torch.float32)
    return Statistics(
        weights=weights_TK,
        index=weights_TK.new_empty(num_tokens, top_k, dtype=torch.int32 if choice.narrow_index else torch.int64),
        counts=weights_TK.new_empty(num_experts if choice.with_counts else 0, dtype=torch.int64),
        logsumexp=weights_TK.new_empty(num_tokens if choice.with_logsumexp else 0, dtype=torch.float64),
        chosen=weights_TK.new_empty(num_tokens, top_k),
    )


def _gate_fake(*inputs: Any) -> tuple[Tensor, Tensor]:
    statistics = _statistics_fake(*inputs)
    return statistics.weights, statistics.index


def _backward_fake(*inputs: Any) -> Tensor:
    index_TK, num_experts, dtype = inputs[3], inputs[7], inputs[8]
    fake: Tensor = index_TK.new_empty(index_TK.shape[0], num_experts, dtype=dtype)
    return fake


for _name in ("topk_gate", "topk_gate_statistics", "topk_gate_backward"):
    library.implement(_name, f"moegate.ops.topk_gate.gpu_operator:{_name}")
library.register_fake("topk_gate", _gate_fake)
library.register_fake("topk_gate_statistics", _statistics_fake)
library.register_fake("topk_gate_backward", _backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_TE, options = inputs[0], Options(*inputs[3:])
    _, index_TK, _, logsumexp_T, chosen_TK = output
    # Without a logsumexp no gradient goes beyond the chosen experts.
    kept_TE = logits_TE if keeps_logsumexp(options.mode) else None
    ctx.save_for_backward(index_TK, chosen_TK, logsumexp_T, kept_TE)
    ctx.set_materialize_grads(False)
    ctx.arguments = (logits_TE.shape[-1], logits_TE.dtype, options.eps, options.scale, options.mode)


def _backward(
    ctx: Any,
    grad_weights_TK: Tensor | None,
    grad_index: None,
    grad_counts: None,
    grad_logsumexp_T: Tensor | None,
    grad_chosen_TK: Tensor | None,
) -> tuple[Tensor | None, ...]:
    if not keeps_logsumexp(ctx.arguments[-1]):
        grad_logsumexp_T = None  # of an empty output
    grads = (grad_weights_TK, grad_logsumexp_T, grad_chosen_TK)
    grad_TE = None
    if any(grad is not None for grad in grads):
        # A second derivative goes through the formula, which depends on the chosen logits and the logsumexp.
        differentiable = torch.is_grad_enabled()
        backward = topk_gate_backward_reference if differentiable else torch.ops.moegate.topk_gate_backward.default
        grad_TE = backward(*grads, *ctx.saved_tensors, *ctx.arguments)
    return (grad_TE, *(None,) * 8)


library.register_autograd("topk_gate_statistics", _backward, _setup_context)


def topk_gate(  # noqa: PLR0913 - one setting per part of a rule
    logits_TE: Tensor,
    *,
    top_k: int,
    score: str,
    bias_E: Tensor | None = None,
    token_mask_T: Tensor | None = None,
    num_groups: int = 1,
    groups_kept: int = 1,
    group_score: str = "max",
    renormalize: bool = False,
    eps: float = 1e-20,
    scale: float = 1.0,
    rank_by: str = "logits",
    index_dtype: torch.dtype = torch.int64,
    with_counts: bool = False,
    with_logsumexp: bool = False,
) -> Gated:
    """The ``top_k`` experts of each token and their weights.

    Args:
        logits_TE: ``[T, E]`` floating point, any strides. Computed in float32; float64 stays float64.
        top_k: experts per token, from 1 to E.
        score: ``"softmax"``, ``"softmax_selected"``, ``"sigmoid"``, ``"sqrt_softplus"``, ``"identity"`` or ``"relu"``.
        bias_E: ``[E]``, added to the scores for the selection only; without a gradient.
        token_mask_T: ``[T]`` bool, True for a real token.
        num_groups: groups of neighbouring experts, of which the best ``groups_kept`` stay.
        groups_kept: how many groups stay.
        group_score: a group counts by its ``"max"`` or by the sum of its two greatest, ``"top2_sum"``.
        renormalize: divide the weights by their sum plus ``eps``.
        eps: see ``renormalize``.
        scale: a factor on the weights, applied last.
        rank_by: ``"logits"``, or ``"scores"`` to order by the scores even without a bias.
        index_dtype: ``torch.int64`` or ``torch.int32``.
        with_counts: whether to count the tokens of each expert.
        with_logsumexp: whether to return each token's logsumexp; it has a gradient.

    Returns:
        A ``Gated``.

    Raises:
        TypeError, ValueError: when an argument does not fit; the message says what is expected.

    Example:
        >>> import torch
        >>> gated = topk_gate(torch.tensor([[1.0, 3.0, 2.0]]), top_k=2, score="softmax", renormalize=True)
        >>> gated.index.tolist(), round(gated.weights[0, 0].item(), 4)
        ([[1, 2]], 0.7311)
    """
    num_tokens, num_experts = _check_logits(logits_TE)
    if bias_E is not None:
        bias_E = _checked_bias(bias_E, num_experts, logits_TE)
    if token_mask_T is not None:
        _check_token_mask(token_mask_T, num_tokens, logits_TE)
    differentiable = logits_TE.requires_grad and torch.is_grad_enabled()
    find_options = options_for.__wrapped__ if torch.compiler.is_compiling() else options_for
    options = find_options(
        num_experts,
        bias_E is not None,
        top_k,
        score,
        num_groups,
        groups_kept,
        group_score,
        renormalize,
        eps,
        scale,
        rank_by,
        index_dtype,
        with_counts,
        with_logsumexp,
        differentiable,
    )
    by_operators = logits_TE.dtype == torch.float64 or is_transformed()
    if not (with_counts or with_logsumexp or differentiable or by_operators):
        weights_TK, index_TK = _GATE(logits_TE, bias_E, token_mask_T, *options)
        return Gated(weights_TK, index_TK, None, None)
    if by_operators:
        # The reference, which autograd and every transform differentiate as it stands.
        statistics = gate(logits_TE, bias_E, token_mask_T, options)
    else:
        statistics = Statistics(*_STATISTICS(logits_TE, bias_E, token_mask_T, *options))
    return Gated(
        statistics.weights,
        statistics.index,
        statistics.counts if with_counts else None,
        statistics.logsumexp.to(statistics.weights.dtype) if with_logsumexp else None,
    )


_GATE = torch.ops.moegate.topk_gate.default
_STATISTICS = torch.ops.moegate.topk_gate_statistics.default
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _check_logits(logits_TE: Tensor) -> tuple[int, int]:
    if not isinstance(logits_TE, Tensor) or logits_TE.dtype not in _FLOATS:
        given = logits_TE.dtype if isinstance(logits_TE, Tensor) else type(logits_TE).__name__
        raise TypeError(f"logits must be a tensor of float32, bfloat16, float16 or float64, got {given}.")
    shape = logits_TE.shape
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"logits must have the shape [T, E] with at least one expert, got {tuple(shape)}.")
    return shape[0], shape[1]


def _checked_bias(bias_E: Tensor, num_experts: int, logits_TE: Tensor) -> Tensor:
    if not isinstance(bias_E, Tensor) or not bias_E.is_floating_point():
        given = bias_E.dtype if isinstance(bias_E, Tensor) else type(bias_E).__name__
        raise TypeError(f"bias must be a floating-point tensor [{num_experts}], got {given}.")
    _check_shape("bias", bias_E, (num_experts,), logits_TE)
    bias_E = bias_E.detach() if bias_E.requires_grad else bias_E
    wide = torch.float64 if logits_TE.dtype == torch.float64 else torch.float32
    return bias_E if bias_E.dtype == wide else bias_E.to(wide)


def _check_token_mask(token_mask_T: Tensor, num_tokens: int, logits_TE: Tensor) -> None:
    if not isinstance(token_mask_T, Tensor) or token_mask_T.dtype != torch.bool:
        given = token_mask_T.dtype if isinstance(token_mask_T, Tensor) else type(token_mask_T).__name__
        raise TypeError(f"token_mask must be a bool tensor [{num_tokens}], True for a real token; got {given}.")
    _check_shape("token_mask", token_mask_T, (num_tokens,), logits_TE)


def _check_shape(name: str, values: Tensor, shape: tuple[int, ...], logits_TE: Tensor) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(values.shape)}.")
    _check_device(name, values, logits_TE)


def _check_device(name: str, values: Tensor, logits_TE: Tensor) -> None:
    if values.device != logits_TE.device:
        raise ValueError(f"{name} is on {values.device} and the logits are on {logits_TE.device}: move one of them.")
