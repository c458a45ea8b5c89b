"""npu_moe_token_permute_with_routing_map: Megatron's permutation from a map of tokens and experts."""

import torch
from torch import Tensor

from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import FLOATS, check_float, check_tensor, require, require_types
from moegate.ascend.routing_map import check_routing_map, chosen_experts
from moegate.ascend.rows import inverse_places, padded_places
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.permute import permute
from moegate.parts import check_integer

_NAME = "npu_moe_token_permute_with_routing_map"


def npu_moe_token_permute_with_routing_map(
    tokens: Tensor,
    routing_map: Tensor,
    *,
    probs: Tensor | None = None,
    num_out_tokens: int | None = None,
    drop_and_pad: bool = False,
    strict: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The tokens' rows sorted by expert, with their probabilities; differentiable in ``tokens`` and ``probs``.

    Args:
        tokens: ``[N, H]``.
        routing_map: ``[N, E]`` bool or int8.
        probs: ``[N, E]``; None for none.
        num_out_tokens: rows in all: ``K = num_out_tokens // N`` per token, or, with ``drop_and_pad``,
            ``C = num_out_tokens // E`` per expert. None for ``N``.
        drop_and_pad: each expert takes its first ``C`` tokens, and where it has fewer, its first other tokens follow as
            filling, with whatever probability they have (normally 0).
        strict: raises for what the hardware does not take.

    Returns:
        The rows ``[R, H]``, their probabilities ``[R]`` (None without ``probs``), and ``sorted_indices`` int32:
        the row of each slot, ``[N · K]``, a token's slots being in the order of its experts; with ``drop_and_pad``
        the token of each row, ``[E · C]``. The device asks for exactly ``K`` experts per token. Here a token may have
        fewer: its last slots are -1, and the rows at the end are 0, as ``npu_moe_token_unpermute_with_routing_map``
        takes them.

    Raises:
        TypeError, AscendOperatorError: when the arguments do not fit, or a token has more than ``K`` experts.
        AscendOperatorError: in strict mode, for a type or a size that the hardware does not take.

    Example:
        >>> tokens, routing_map = torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3, 2, dtype=torch.bool)
        >>> probs = torch.tensor([[0.5, 0.3], [0.4, 0.6], [0.2, 0.8]])
        >>> rows, row_probs, sorted_indices = npu_moe_token_permute_with_routing_map(
        ...     tokens, routing_map, probs=probs, num_out_tokens=6)
        >>> rows.flatten().tolist(), sorted_indices.tolist()
        ([1.0, 2.0, 3.0, 1.0, 2.0, 3.0], [0, 3, 1, 4, 2, 5])
        >>> row_probs
        tensor([0.5000, 0.4000, 0.2000, 0.3000, 0.6000, 0.8000])

    Source: torch_npu (op-plugin) npu_moe_token_permute_with_routing_map; CANN aclnnMoeTokenPermuteWithRoutingMap.
    """
    check_tensor("tokens", tokens, "tokens", "hidden size")
    num_tokens = tokens.shape[0]
    check_routing_map(routing_map, num_tokens)
    num_experts = routing_map.shape[1]
    if probs is not None:
        check_tensor("probs", probs, num_tokens, num_experts)
        check_float("probs", probs)
    num_out = num_tokens if num_out_tokens is None else num_out_tokens
    check_integer("num_out_tokens", num_out, least=0)
    if num_out > num_tokens * num_experts:
        raise AscendOperatorError(
            INVALID, f"num_out_tokens must be at most {num_tokens} tokens · {num_experts} experts, got {num_out}."
        )
    if strict:
        _check_limits(tokens, routing_map, probs, num_out, drop_and_pad)
    if drop_and_pad:
        return _padded(tokens, routing_map, probs, num_out // max(1, num_experts))
    return _sorted(tokens, routing_map, probs, num_out // max(1, num_tokens))


def _sorted(
    tokens: Tensor, routing_map: Tensor, probs: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    num_tokens, num_experts = routing_map.shape
    expert_NK = chosen_experts(routing_map, top_k)
    places = dispatch_plan(expert_NK, max(1, num_experts))
    slot_R = padded_places(places.slot, num_tokens * top_k)
    row_probs = None
    if probs is not None:
        probs_NK = probs.gather(1, expert_NK.clamp(min=0))
        row_probs = _taken(probs_NK.reshape(-1), slot_R)
    return permute(tokens, slot_R, places.inverse), row_probs, places.inverse.reshape(-1).to(torch.int32)


def _padded(
    tokens: Tensor, routing_map: Tensor, probs: Tensor | None, capacity: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    num_tokens, num_experts = routing_map.shape
    other_EN = (~routing_map.bool()).t().to(torch.int8)
    token_EC = torch.argsort(other_EN, dim=1, stable=True)[:, :capacity]
    expert_E1 = torch.arange(num_experts, device=tokens.device)[:, None]
    slot_R = (token_EC * num_experts + expert_E1).reshape(-1)
    inverse_N, _ = inverse_places(slot_R, num_tokens * num_experts)
    rows_RH = permute(tokens, slot_R, inverse_N.view(num_tokens, num_experts))
    row_probs = None if probs is None else _taken(probs.reshape(-1), slot_R)
    return rows_RH, row_probs, token_EC.reshape(-1).to(torch.int32)


def _taken(values_N: Tensor, slot_R: Tensor) -> Tensor:
    """The value of each row's slot, 0 for a row without one."""
    if values_N.numel() == 0:
        return values_N.new_zeros(slot_R.shape[0])
    return torch.where(slot_R < 0, 0.0, values_N[slot_R.clamp(min=0)]).to(values_N.dtype)


def _check_limits(tokens: Tensor, routing_map: Tensor, probs: Tensor | None, num_out: int, drop_and_pad: bool) -> None:
    require_types(_NAME, FLOATS, tokens=tokens, probs=probs)
    if probs is not None:
        alike = probs.dtype == tokens.dtype or (probs.dtype, tokens.dtype) == (torch.float32, torch.bfloat16)
        require(alike, _NAME, "probs in the type of the tokens, or float32 with bfloat16 tokens", probs.dtype)
    num_tokens, num_experts = routing_map.shape
    most = 16_777_215
    require(max(num_tokens, num_experts) < most, _NAME, f"fewer than {most} tokens and experts", routing_map.shape)
    if drop_and_pad or num_tokens == 0:
        return
    top_k = num_out // num_tokens
    require(top_k < 512 and top_k * num_tokens < most, _NAME, "fewer than 512 experts per token", top_k)
    counts = routing_map.bool().sum(dim=1)
    wanted = f"exactly num_out_tokens // tokens = {top_k} experts for each token"
    require(bool((counts == top_k).all()), _NAME, wanted, sorted(set(counts.tolist())))
