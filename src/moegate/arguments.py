"""Checks of what users pass, with sentences that say what was passed and what is expected."""

import math

import torch
from torch import Tensor

from moegate.ops.synchronization import may_look
from moegate.ops.transforms import is_transformed


def check_logits(logits: object) -> None:
    """Raises unless ``logits`` is a floating-point tensor with a last dimension of experts."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor [..., num_experts], got {type(logits).__name__}.")
    if not logits.is_floating_point():
        raise TypeError(
            f"logits must be floating point, got {logits.dtype}: pass the gate's raw output, "
            "not indices; convert with logits.float() if these really are logits."
        )
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"logits must have the shape [..., num_experts] with at least one expert, got {tuple(logits.shape)}."
        )


def check_hidden(hidden: object, hidden_size: int) -> None:
    """Raises unless ``hidden`` is a floating-point tensor with a last dimension of ``hidden_size``."""
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
        raise TypeError(f"hidden must be a floating-point tensor [..., {hidden_size}], got {_describe(hidden)}.")
    if hidden.ndim == 0 or hidden.shape[-1] != hidden_size:
        raise ValueError(f"hidden must be [..., {hidden_size}], got {tuple(hidden.shape)}.")


def flat_tokens(name: str, values: Tensor | None, batch_shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """``values``, one per token, flattened to ``[T]``; None stays None. Raises when the shape or device is another."""
    if values is None:
        return None
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}.")
    num_tokens = math.prod(batch_shape)
    if tuple(values.shape) not in {batch_shape, (num_tokens,)}:
        raise ValueError(
            f"{name} must have one value per token, so the shape {batch_shape} or ({num_tokens},); "
            f"got {tuple(values.shape)}."
        )
    check_device(name, values, like)
    return values.reshape(-1)


def flat_mask(token_mask: Tensor | None, batch_shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """The token mask as ``[T]`` bool; raises for anything but bool, so that no attention bias passes for a mask."""
    if isinstance(token_mask, Tensor) and token_mask.dtype != torch.bool:
        raise TypeError(
            f"token_mask must be bool with True for a real token, got {token_mask.dtype}: "
            "for a Hugging Face attention_mask pass attention_mask.bool()."
        )
    return flat_tokens("token_mask", token_mask, batch_shape, like)


def flat_token_ids(token_ids: Tensor | None, batch_shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """The token ids as ``[T]`` int64."""
    if isinstance(token_ids, Tensor) and (token_ids.is_floating_point() or token_ids.dtype == torch.bool):
        raise TypeError(f"token_ids must be integers, got {token_ids.dtype}.")
    ids_T = flat_tokens("token_ids", token_ids, batch_shape, like)
    return None if ids_T is None else ids_T.to(torch.int64)


def flat_expert_index(values: object, batch_shape: tuple[int, ...], num_experts: int, like: Tensor) -> Tensor:
    """The experts of each token as ``[T, K]`` int64 with ``-1`` in empty slots.

    Raises unless every token has as many slots as the others, and no expert twice or that does not exist; the numbers
    are looked at only where ``moegate.ops.synchronization.may_look`` allows it.
    """
    shape = ", ".join((*(str(size) for size in batch_shape), "K"))
    wanted = f"an integer tensor of the experts of each token, [{shape}], with -1 for an empty slot"
    if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool:
        raise TypeError(f"expert_index must be {wanted}; got {_describe(values)}.")
    num_tokens = math.prod(batch_shape)
    if values.ndim == 0 or tuple(values.shape[:-1]) not in {batch_shape, (num_tokens,)}:
        raise ValueError(f"expert_index must be {wanted}; got the shape {tuple(values.shape)}.")
    check_device("expert_index", values, like)
    index_TK = values.reshape(num_tokens, values.shape[-1]).to(torch.int64)
    if may_look(index_TK) and not is_transformed():
        _check_experts(index_TK, num_experts)
    return index_TK


def _check_experts(index_TK: Tensor, num_experts: int) -> None:
    if index_TK.numel() == 0:
        return
    least, greatest = (int(value) for value in index_TK.aminmax())
    if least < -1 or greatest >= num_experts:
        raise ValueError(
            f"expert_index names experts from {least} to {greatest}, but there are {num_experts}: they must lie in "
            f"0..{num_experts - 1}, or be -1 for an empty slot."
        )
    sorted_TK = index_TK.sort(dim=-1).values
    twice_TK = (sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] >= 0)
    if bool(twice_TK.any()):
        token = int(twice_TK.any(dim=-1).nonzero()[0])
        raise ValueError(
            f"expert_index gives token {token} an expert twice, {index_TK[token].tolist()}: each of its experts must "
            "be another; use -1 for a slot that is not needed."
        )


def per_expert(name: str, values: Tensor | None, num_experts: int, like: Tensor) -> Tensor | None:
    """``values [E]`` in float32, or float64 for float64 logits; None stays None."""
    if values is None:
        return None
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor [{num_experts}], got {_describe(values)}.")
    if tuple(values.shape) != (num_experts,):
        raise ValueError(
            f"{name} must hold one value per expert, so the shape ({num_experts},); got {tuple(values.shape)}."
        )
    check_device(name, values, like)
    return values.to(_wide(like))


def like_logits(name: str, values: Tensor | None, logits_TE: Tensor, batch_shape: tuple[int, ...]) -> Tensor | None:
    """``values``, shaped like the logits, flattened to ``[T, E]`` in float32, or float64 for float64 logits; None stays
    None."""
    if values is None:
        return None
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor like the logits, got {_describe(values)}.")
    num_tokens, num_logits = logits_TE.shape
    if tuple(values.shape) not in {(*batch_shape, num_logits), (num_tokens, num_logits)}:
        raise ValueError(
            f"{name} must be shaped like the logits, {(*batch_shape, num_logits)}; got {tuple(values.shape)}."
        )
    check_device(name, values, logits_TE)
    return values.to(_wide(logits_TE)).reshape(num_tokens, num_logits)


def check_device(name: str, values: Tensor, like: Tensor) -> None:
    """Raises when ``values`` lies on another device than ``like``."""
    if values.device != like.device:
        raise ValueError(
            f"{name} is on {values.device} and the logits are on {like.device}: "
            f"move it with {name}.to({str(like.device)!r})."
        )


def as_generator(generator: torch.Generator | int | None, device: torch.device) -> torch.Generator | None:
    """A generator: itself, or a fresh one for an integer seed.

    A generator object that was passed by hand has moved on when activation checkpointing recomputes a forward; it
    would draw other experts, and the gradient would be wrong without a sign. That is refused.
    """
    if generator is None:
        return None
    if isinstance(generator, bool) or not isinstance(generator, int | torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, an integer seed or None, got {type(generator).__name__}."
        )
    if isinstance(generator, int):
        return torch.Generator(device).manual_seed(generator)
    if torch._C._current_graph_task_id() != -1:
        raise ValueError(
            "A forward is being recomputed in the backward pass (activation checkpointing), but the torch.Generator "
            "it was given has moved on since. Pass an integer seed as generator, or None for PyTorch's default "
            "generator, whose state checkpointing restores."
        )
    return generator


def _wide(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _describe(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
