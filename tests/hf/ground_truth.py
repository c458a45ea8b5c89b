"""What the experts of a layer received, seen by hooks of the tests' own: an oracle that knows nothing of rules."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moegate.hf import MoELayer


@dataclass
class Seen:
    """One call of one layer: what its gate was called with and returned, and the weight of each expert, ``[T, E]``.

    A weight is NaN where the expert did not receive the token.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    returned: tuple[Any, ...] = ()
    weights: Tensor | None = None
    index: Tensor | None = None
    """``[T, K]`` in the order in which the experts received them, where they received them so."""


def spread(index_TK: Tensor, weights_TK: Tensor, num_experts: int) -> Tensor:
    """``[T, E]`` of ``[T, K]``, NaN in all other places; empty slots (-1) go nowhere."""
    room_TE = torch.full((len(index_TK), num_experts + 1), float("nan"))
    index_TK = torch.where(index_TK < 0, num_experts, index_TK)
    return room_TE.scatter(1, index_TK, weights_TK.float())[:, :num_experts]


def _copied(value: Any) -> Any:
    # A block may change what it reads in place.
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def watched(layers: list[MoELayer]) -> Iterator[list[list[Seen]]]:
    """Collects the calls of each layer while the model runs."""
    calls: list[list[Seen]] = [[] for _ in layers]
    with ExitStack() as stack:
        for layer, seen in zip(layers, calls, strict=True):
            for handle in _hooks(layer, seen):
                stack.callback(handle.remove)
        yield calls


def _hooks(layer: MoELayer, seen: list[Seen]) -> list[Any]:
    def before_gate(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(
            Seen(tuple(_copied(value) for value in args), {name: _copied(value) for name, value in kwargs.items()})
        )

    def after_gate(_: nn.Module, args: tuple[Any, ...], returned: Any) -> None:
        values = returned if isinstance(returned, tuple) else (returned,)
        seen[-1].returned = tuple(_copied(value) for value in values)

    def before_experts(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        READERS[layer.row.receives](layer, seen[-1], [*args, *kwargs.values()])

    return [
        layer.gate.register_forward_pre_hook(before_gate, with_kwargs=True),
        layer.gate.register_forward_hook(after_gate),
        layer.experts.register_forward_pre_hook(before_experts, with_kwargs=True),
    ]


def _top_k(layer: MoELayer, seen: Seen, values: list[Any]) -> None:
    _, index_TK, weights_TK = values
    seen.index, seen.weights = index_TK, spread(index_TK, weights_TK.detach(), layer.num_experts)


def _skips(layer: MoELayer, seen: Seen, values: list[Any]) -> None:
    """ZAYA: a token that skips goes to expert 0 with the weight 0."""
    _top_k(layer, seen, values)
    assert seen.index is not None
    seen.weights = spread(seen.index.masked_fill(values[2] == 0, -1), values[2].detach(), layer.num_experts)
    seen.index = seen.index.masked_fill(values[2] == 0, -1)


def _one_hot(layer: MoELayer, seen: Seen, values: list[Any]) -> None:
    _, chosen_T1E, weights_T1 = values
    seen.weights = weights_T1.detach().masked_fill(chosen_T1E.squeeze(1) == 0, float("nan")).float()


def _scaled_inputs(layer: MoELayer, seen: Seen, values: list[Any]) -> None:
    """Llama 4: every expert runs on every token times its weight, which is 0 where it is not chosen."""
    (inputs,) = values
    hidden_TD = seen.args[0]
    inputs_ETD = inputs.detach().view(layer.num_experts, *hidden_TD.shape)
    # The largest coordinate says the factor best.
    place_T1 = hidden_TD.abs().argmax(-1, keepdim=True)
    factors_ET = inputs_ETD.gather(-1, place_T1.expand(layer.num_experts, -1, -1)).squeeze(-1)
    weights_TE = (factors_ET / hidden_TD.gather(-1, place_T1).T).T
    seen.weights = weights_TE.masked_fill(weights_TE == 0, float("nan"))


def _looked_up(layer: MoELayer, seen: Seen, values: list[Any]) -> None:
    """Doge: experts are rows of an embedding. Their weights are nowhere passed on: see ``doge_weights``."""
    (seen.index,) = values
    seen.weights = spread(seen.index, torch.zeros(seen.index.shape), layer.num_experts)


def _sorted_rows(layer: MoELayer, seen: Seen, values: list[Any]) -> None:
    """JetMoE: rows sorted by expert, with the number of rows of each expert."""
    sizes = values[-1]
    _, token_R, weights_R, _, _ = seen.returned
    expert_R = torch.repeat_interleave(torch.arange(layer.num_experts), torch.tensor(sizes))
    weights_TE = torch.full((int(token_R.max()) + 1, layer.num_experts), float("nan"))
    weights_TE[token_R, expert_R] = weights_R.float()
    seen.weights = weights_TE


def _mask_and_probabilities(layer: MoELayer, seen: Seen, values: list[Any]) -> None:
    """NLLB: what the router meant for each expert; the experts read it otherwise."""
    _, _, weights_TE = values
    seen.weights = weights_TE.detach().float().masked_fill(weights_TE == 0, float("nan"))


READERS = {
    "nllb": _mask_and_probabilities,
    "top_k": _top_k,
    "dbrx": _top_k,
    "skips": _skips,
    "switch": _one_hot,
    "dense_scores": _scaled_inputs,
    "jetmoe": _sorted_rows,
    "doge": _looked_up,
}
