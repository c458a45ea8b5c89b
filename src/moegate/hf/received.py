"""What the experts of a layer received: the indices and weights that they were called with, seen by a hook.

Nothing is derived from logits: a biased or grouped router chooses other experts than their order says. Where a family
hands its experts something else than indices and weights, these are read back from what it hands them.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.layers import MoELayer
from moegate.hf.logits import gate_logits
from moegate.records import EMPTY

__all__ = ["CALLS", "Handles", "Received", "See", "given_logits", "three_arguments", "watch", "watch_logits"]


class Received(NamedTuple):
    """One call of a layer's experts.

    ``expert_index`` ``[T, K]`` integers and ``weights`` ``[T, K]`` are the tensors that the experts received, not
    copies; -1 marks a slot without an expert.
    """

    expert_index: Tensor
    weights: Tensor


See = Callable[[Received], None]


class Handles:
    """Several hooks that are removed together."""

    def __init__(self, *handles: "RemovableHandle | Handles"):
        self.handles = list(handles)

    def remove(self) -> None:
        """Takes the hooks away; a second time it does nothing."""
        while self.handles:
            self.handles.pop().remove()


def watch(layer: MoELayer, see: See) -> Handles:
    """Calls ``see`` with what the layer's experts receive, before each call; the handle's ``remove`` ends it."""
    return CALLS[layer.row.receives](layer, see)


def watch_logits(layer: MoELayer, see: Callable[[Tensor], None]) -> Handles:
    """Calls ``see`` with the logits ``[T, E]`` that the layer's gate gives, each time before the experts run."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        see(given_logits(layer, args, kwargs, output))

    return Handles(layer.gate.register_forward_hook(hook, with_kwargs=True))


def given_logits(layer: MoELayer, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    """The logits ``[T, E]`` that a layer's gate made in a call."""
    if layer.row.logits == "normed":  # Gemma 4's gate keeps its logits to itself and gives their softmax
        return gate_logits(layer, *args, **kwargs)
    if layer.row.logits == "product_keys":  # an expert is a pair of keys, and its logit the sum of theirs
        first_TE, second_TE = gate_logits(layer, *args, **kwargs).chunk(2, dim=-1)
        return (first_TE[:, :, None] + second_TE[:, None, :]).flatten(1)
    logits: Tensor = output[_LOGITS_AT[layer.row.receives]] if isinstance(output, tuple) else output
    return logits.reshape(-1, logits.shape[-1])


_LOGITS_AT = {
    "top_k": 0,
    "dbrx": 0,
    "skips": 0,
    "dataset": 0,
    "doge": 0,
    "dense_scores": 1,
    "nllb": 2,
    "switch": 2,
    "jetmoe": 4,
}


def _top_k(layer: MoELayer, see: See) -> Handles:
    """``experts(hidden_states, expert_index, weights)``, by position or by name."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        see(Received(*three_arguments(module, args, kwargs)[1:]))

    return Handles(layer.experts.register_forward_pre_hook(hook, with_kwargs=True))


def _skips(layer: MoELayer, see: See) -> Handles:
    """ZAYA: a token that skips the experts reaches them as one of expert 0 with the weight 0."""

    def without_skips(received: Received) -> None:
        index_TK, weights_TK = received
        see(Received(index_TK.masked_fill(weights_TK == 0, EMPTY), weights_TK))

    return _top_k(layer, without_skips)


def three_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The three arguments of a call of the experts, in order."""
    if len(args) >= 3:
        return args[:3]
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):  # adapters wrap the experts
        module = inner
    names = list(zip(inspect.signature(module.forward).parameters, _INTERFACE, strict=False))
    return (*args, *(kwargs[own if own in kwargs else common] for own, common in names[len(args) :]))


_INTERFACE = ("hidden_states", "top_k_index", "top_k_weights")


def _one_hot(layer: MoELayer, see: See) -> Handles:
    """Switch: ``experts(hidden, chosen [T, 1, E] of 0 and 1, probability [T, 1])``; a dropped token has no 1."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        _, chosen_TKE, weights_TK = three_arguments(module, args, kwargs)
        taken_TK, index_TK = chosen_TKE.max(dim=-1)
        see(Received(index_TK.masked_fill(taken_TK == 0, EMPTY), weights_TK * taken_TK))

    return Handles(layer.experts.register_forward_pre_hook(hook, with_kwargs=True))


def _probabilities(layer: MoELayer, see: See) -> Handles:
    """NLLB: ``experts(hidden, numbers [T, E], probabilities [T, E])``, with a probability for the two chosen ones.

    In transformers 5.23 the numbers are the mask of the first choice, so that the experts 1 and 0 run, whichever two
    the router chose.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        _, number_TE, weights_TE = three_arguments(module, args, kwargs)
        weights_TE, column_TE = weights_TE.sort(dim=-1, descending=True, stable=True)
        weights_TK = weights_TE[:, :2]
        index_TK = number_TE.gather(-1, column_TE[:, :2])
        see(Received(index_TK.masked_fill(weights_TK == 0, EMPTY), weights_TK))

    return Handles(layer.experts.register_forward_pre_hook(hook, with_kwargs=True))


def _scores(layer: MoELayer, see: See) -> Handles:
    """Llama 4: the experts receive the tokens times their scores ``[T, E]``; all but the chosen ones' are 0."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        see(_chosen(output[0], layer.top_k))

    return Handles(layer.gate.register_forward_hook(hook))


def _chosen(values_TE: Tensor, top_k: int) -> Received:
    """The experts with a value, the greatest first."""
    weights_TE, index_TE = values_TE.sort(dim=-1, descending=True, stable=True)
    weights_TK = weights_TE[:, :top_k]
    return Received(index_TE[:, :top_k].masked_fill(weights_TK == 0, EMPTY), weights_TK)


def _sorted_rows(layer: MoELayer, see: See) -> Handles:
    """JetMoE: the gate sorts the rows by expert, and the experts receive them with the number of rows of each."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        slot_R, _, weight_R, sizes, _ = output
        top_k = layer.top_k
        expert_R = torch.repeat_interleave(
            torch.arange(len(sizes), device=slot_R.device), torch.tensor(sizes, device=slot_R.device)
        )
        index_R = torch.empty_like(expert_R).scatter_(0, slot_R, expert_R)
        weights_R = torch.empty_like(weight_R).scatter(0, slot_R, weight_R)
        see(Received(index_R.view(-1, top_k), weights_R.view(-1, top_k)))

    return Handles(layer.gate.register_forward_hook(hook))


def _looked_up(layer: MoELayer, see: See) -> Handles:
    """Doge: experts are rows of an embedding, looked up by index; weights are the softmax of the two keys' scores."""
    scores: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        scores[:] = [output]

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        index_TK = args[0]
        keys_2TE = scores.pop().reshape(2, index_TK.shape[0], -1)
        num_keys = keys_2TE.shape[-1]
        first_TK = keys_2TE[0].gather(-1, index_TK // num_keys)
        weights_TK = (first_TK + keys_2TE[1].gather(-1, index_TK % num_keys)).softmax(dim=-1)
        if getattr(layer.block, "norm_topk_prob", False):
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        see(Received(index_TK, weights_TK))

    return Handles(layer.gate.register_forward_hook(keep), layer.experts.register_forward_pre_hook(hook))


def _dataset(layer: MoELayer, see: See) -> Handles:
    """ViTPose: ``experts(hidden [B, S, F], indices [B, 1, 1])``, every token of an image to the same expert."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        hidden_BSF, index_B11 = args
        index_T1 = index_B11.expand(*hidden_BSF.shape[:2], 1).reshape(-1, 1)
        see(Received(index_T1, torch.ones_like(index_T1, dtype=hidden_BSF.dtype)))

    return Handles(layer.experts.register_forward_pre_hook(hook))


CALLS: dict[str, Callable[[MoELayer, See], Handles]] = {
    "top_k": _top_k,
    "dbrx": _top_k,
    "skips": _skips,
    "switch": _one_hot,
    "nllb": _probabilities,
    "dense_scores": _scores,
    "jetmoe": _sorted_rows,
    "doge": _looked_up,
    "dataset": _dataset,
}
"""By what a row of the families' table says in ``receives``."""
