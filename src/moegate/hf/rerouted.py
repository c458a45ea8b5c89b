"""Other experts for the tokens of a layer: the choice of its router is replaced on the way to its experts.

These hooks come before all others, so that whoever watches the experts sees what they really receive.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moegate.hf.layers import MoELayer
from moegate.hf.received import Handles, Received, given_logits, three_arguments
from moegate.records import EMPTY
from moegate.routing import route

__all__ = ["REROUTES", "Reroute", "reroute", "weights_of"]

Reroute = Callable[[Received, Tensor], Received]
"""What the router chose and the logits ``[T, E]`` of the gate in, what the experts shall receive out."""


def reroute(layer: MoELayer, choose: Reroute) -> Handles:
    """Has a layer's experts receive what ``choose`` returns; the handle's ``remove`` ends it.

    Raises:
        ValueError: the layer's experts are told of their tokens in a way in which nothing can be replaced.
    """
    way = REROUTES.get(layer.row.receives)
    if way is None:
        raise ValueError(f"{layer.name} ({layer.row.name}) can't be rerouted: its experts choose by what they read.")
    return way(layer, choose)


def weights_of(layer: MoELayer, logits_TE: Tensor, index_TK: Tensor) -> Tensor:
    """``[T, K]``, the weights that the layer's rule gives to these experts, with gradients to the logits."""
    routing = route(
        logits_TE,
        layer.rule,
        expert_index=index_TK,
        training=layer.block.training,
        expert_scale=layer.expert_scale,
    )
    return routing.weights


def _valid(received: Received) -> Received:
    """Empty slots as the experts know them: expert 0 with the weight 0."""
    empty_TK = received.expert_index == EMPTY
    return Received(received.expert_index.masked_fill(empty_TK, 0), received.weights.masked_fill(empty_TK, 0.0))


def _top_k(layer: MoELayer, choose: Reroute) -> Handles:
    gave: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        gave[:] = [given_logits(layer, args, kwargs, output)]

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden, index_TK, weights_TK = three_arguments(module, args, kwargs)
        chosen = _valid(choose(Received(index_TK, weights_TK), gave.pop()))
        return (hidden, chosen.expert_index, chosen.weights, *args[3:]), {}

    return Handles(
        layer.gate.register_forward_hook(keep, with_kwargs=True),
        layer.experts.register_forward_pre_hook(hook, with_kwargs=True, prepend=True),
    )


def _switch(layer: MoELayer, choose: Reroute) -> Handles:
    """The gate gives ``(chosen [B, S, E] of 0 and 1, probability [B, S, 1], logits)``."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        chosen_BSE, weights_BS1, logits_BSE = output
        taken_BS, index_BS = chosen_BSE.max(dim=-1)
        index_T1 = index_BS.masked_fill(taken_BS == 0, EMPTY).reshape(-1, 1)
        new = choose(Received(index_T1, weights_BS1.reshape(-1, 1)), logits_BSE.reshape(-1, chosen_BSE.shape[-1]))
        valid = _valid(new)
        one_hot_TE = functional.one_hot(valid.expert_index[:, 0], chosen_BSE.shape[-1]).to(chosen_BSE.dtype)
        one_hot_TE = one_hot_TE * (new.expert_index != EMPTY)
        return one_hot_TE.view_as(chosen_BSE), new.weights.view_as(weights_BS1), logits_BSE

    return Handles(layer.gate.register_forward_hook(hook, prepend=True))


def _scores(layer: MoELayer, choose: Reroute) -> Handles:
    """Llama 4's gate gives ``(scores [T, E], logits [T, E])``, 0 where an expert is not chosen."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        scores_TE, logits_TE = output
        weights_TK, index_TK = scores_TE.topk(layer.top_k, dim=-1)
        new = _valid(choose(Received(index_TK, weights_TK), logits_TE))
        return torch.zeros_like(scores_TE).scatter_add(1, new.expert_index, new.weights.to(scores_TE.dtype)), logits_TE

    return Handles(layer.gate.register_forward_hook(hook, prepend=True))


def _sorted_rows(layer: MoELayer, choose: Reroute) -> Handles:
    """JetMoE's gate gives its rows sorted by expert: ``(slot [R], token [R], weight [R], sizes, logits)``."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        slot_R, _, weight_R, sizes, logits_TE = output
        expert_R = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(slot_R.device)
        back_R = slot_R.argsort()
        live = Received(expert_R[back_R].view(-1, layer.top_k), weight_R[back_R].view(-1, layer.top_k))
        new = _valid(choose(live, logits_TE))
        flat_R = new.expert_index.reshape(-1)
        if torch.equal(new.expert_index, live.expert_index):
            return slot_R, output[1], new.weights.reshape(-1)[slot_R], sizes, logits_TE
        slots_R = flat_R.sort(stable=True).indices
        counts = torch.bincount(flat_R, minlength=len(sizes)).tolist()
        return slots_R, slots_R // layer.top_k, new.weights.reshape(-1)[slots_R], counts, logits_TE

    return Handles(layer.gate.register_forward_hook(hook, prepend=True))


REROUTES: dict[str, Callable[[MoELayer, Reroute], Handles]] = {
    "top_k": _top_k,
    "dbrx": _top_k,
    "skips": _top_k,
    "switch": _switch,
    "dense_scores": _scores,
    "jetmoe": _sorted_rows,
}
"""By what a row of the families' table says in ``receives``."""
