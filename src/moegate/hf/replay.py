"""``replay``: a model routes by the indices of a trace, with weights from its own logits (routing replay)."""

from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moegate.hf.blocks import lined_up
from moegate.hf.calls import Follower, Pass, forget_compiled, recomputing, uncompiled
from moegate.hf.layers import MoELayer, moe_layers
from moegate.hf.received import Handles, Received
from moegate.hf.rerouted import REROUTES, reroute, weights_of
from moegate.records import EMPTY
from moegate.trace.trace import Trace

__all__ = ["Replay", "replay"]

_MOST_REMEMBERED = 4096  # forwards of a layer that may still be recomputed


@contextmanager
def replay(model: nn.Module, trace: Trace, live: Collection[str] = ()) -> Iterator["Replay"]:
    """Routes the tokens of a model by the indices of a trace, call by call, within a ``with`` block.

    The experts are those of the trace; their weights come from the model's own logits by the family's rule, so that
    gradients reach the gate. Where the trace has what the router chooses anyway, the router's own weights are kept, bit
    for bit. A forward that activation checkpointing runs again takes the same rows again. Tokens that the trace has in
    no layer (padding) are routed by the router; a single empty slot stays empty.

    Args:
        model: the model, as it is or wrapped.
        trace: a recording of the same tokens, by this or another model of the same shape, in the order of its calls.
        live: names of layers that keep routing by themselves.

    Raises:
        ValueError: the trace does not fit: other layers, experts, slots, tokens, numbers of tokens, or calls, more
            calls than the trace has, or rows that are left at the end. Or a layer is of a family that can't be
            replayed.
        TypeError: ``model`` is no module, or ``trace`` no trace.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> from moegate.hf import record
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
        >>> ids = torch.arange(8).view(2, 4)
        >>> with record(model) as recording:
        ...     logits = model(ids).logits
        >>> with replay(model, recording.trace):
        ...     bool(torch.equal(model(ids).logits, logits))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(trace, Trace):
        raise TypeError(f"trace must be a moegate.trace.Trace, got {type(trace).__name__}.")
    running = Replay(model, trace, _replayed(moe_layers(model), trace, live))
    try:
        yield running
        if running.row < trace.num_tokens and running.layers:
            raise ValueError(
                f"The trace has {trace.num_tokens} rows, and only {running.row} of them were replayed: "
                "run the forwards that it was recorded of."
            )
    finally:
        running.handles.remove()


def _replayed(layers: list[MoELayer], trace: Trace, live: Collection[str]) -> list[MoELayer]:
    """The layers to be replayed, which must be the layers of the trace."""
    names = {layer.name for layer in layers}
    if unknown := [name for name in live if name not in names]:
        raise ValueError(f"live names {unknown[0]!r}, and the model has no such MoE layer.")
    chosen = [layer for layer in layers if layer.name not in live]
    missing = [layer.name for layer in chosen if layer.name not in trace.layers]
    beyond = [name for name in trace.layers if name not in names]
    if missing or beyond:
        what = f"the model's layer {missing[0]!r} is not in it" if missing else f"the model has no layer {beyond[0]!r}"
        raise ValueError(
            f"The trace has {trace.num_layers} layers, the model {len(layers)}, and {what}. "
            "Name layers in live that shall route by themselves."
        )
    for layer in chosen:
        recorded = trace.num_experts[trace.layers.index(layer.name)]
        if recorded != layer.num_experts:
            raise ValueError(f"{layer.name} has {layer.num_experts} experts, and {recorded} in the trace.")
        _check_family(layer)
    return chosen


def _check_family(layer: MoELayer) -> None:
    why = "its experts are not chosen by a router's output"
    if layer.row.receives in REROUTES:
        try:
            layer.rule  # noqa: B018 - it raises where there is none
        except ValueError as error:
            why = str(error)
        else:
            return
    raise ValueError(
        f"{layer.name} ({layer.row.name}) can't be replayed: {why.rstrip('.')}. Pass live=[...] with the names of such "
        "layers to have them route by themselves."
    )


class _Forward(NamedTuple):
    """A forward of a layer that has been replayed: what it was given, and what it would be known by again."""

    recorded: Tensor
    mark: Tensor


@dataclass(eq=False)
class _Place:
    """Where the rows of a pass begin in the trace, by the number of the layer's run in the pass and their number."""

    starts: dict[tuple[int, int], int]
    times: Counter[int]


class Replay:
    """A replay that is running.

    Attributes:
        layers: the names of the layers that are replayed.
        row: the rows of the trace that have been replayed.
        num_calls: the forwards of the model that have been replayed.
        num_changed: the tokens, counted in each layer, that went to other experts than the router would have chosen.
        num_routed: the tokens, counted in each layer, that were routed by the trace.
    """

    def __init__(self, model: nn.Module, trace: Trace, layers: list[MoELayer]):
        self.layers = tuple(layer.name for layer in layers)
        self.row = 0
        self.num_calls = 0
        self.num_changed = 0
        self.num_routed = 0
        self._trace = trace
        self._layers = layers
        self._columns = [trace.layers.index(layer.name) for layer in layers]
        self._real = trace.token_mask
        self._places: dict[Pass, _Place] = {}
        self._begun = 0
        self._done: list[deque[_Forward]] = [deque(maxlen=_MOST_REMEMBERED) for _ in layers]
        forget_compiled()
        self._follower = Follower(model, layers, self._finished, self._failed)
        handles = [self._follower.handles]
        for number, layer in enumerate(layers):
            handles.append(reroute(layer, uncompiled(partial(self._choose, number))))
        self.handles = Handles(*handles)

    def _choose(self, number: int, live: Received, logits_TE: Tensor) -> Received:
        """What the experts of a layer receive in place of what its router chose."""
        mark = _mark(logits_TE)
        if recomputing():
            recorded_TK = self._again(number, mark, len(live.expert_index))
        else:
            recorded_TK = self._next(number, live)
            self._done[number].append(_Forward(recorded_TK, mark))
        index_TK = self._slots(number, recorded_TK, live)
        same_T1 = (index_TK == live.expert_index).all(dim=1, keepdim=True)
        if not recomputing():
            self.num_routed += int((recorded_TK >= 0).any(dim=1).sum())
            self.num_changed += int((~same_T1).sum())
        if bool(same_T1.all()):
            return live
        weights_TK = weights_of(self._layers[number], logits_TE, index_TK).to(live.weights.dtype)
        return Received(index_TK, torch.where(same_T1, live.weights, weights_TK))

    def _next(self, number: int, live: Received) -> Tensor:
        """The rows of the trace for a layer that runs."""
        one = self._follower.current()
        if one is None:
            raise ValueError(f"{self._layers[number].name} ran outside of any forward of the model: nothing fits it.")
        place = self._places.setdefault(one, _Place({}, Counter()))
        size, positions = lined_up(one, self._layers[number].name, len(live.expert_index))
        key = place.times[number], size
        place.times[number] += 1
        if key not in place.starts:
            place.starts[key] = self._take(size)
            self._check_tokens(one, place.starts[key], size)
        self._follower.add(one, number, live)
        start = place.starts[key]
        recorded_NK = self._trace.indices[start : start + size, self._columns[number]]
        # A token that the trace has in no layer was padding: whoever computes on it, it is nobody's business.
        recorded_NK = torch.where(self._real[start : start + size, None], recorded_NK.long(), _LIVE)
        recorded_NK = recorded_NK.to(live.expert_index.device)
        return recorded_NK if positions is None else recorded_NK[positions]

    def _take(self, size: int) -> int:
        start, calls = self.row, self._trace.calls
        if start + size > self._trace.num_tokens:
            raise ValueError(
                f"The trace is exhausted: it has {self._trace.num_tokens} rows, {start} of them were replayed, and the "
                f"model now runs {size} tokens."
            )
        if calls is not None and size:
            here = calls[start : start + size]
            first = int(calls[self._begun])
            if int(here[-1]) != first:
                count = int((calls == first).sum())
                raise ValueError(f"Call {first} of the trace has {count} rows, and the model runs more tokens in it.")
        self.row += size
        return start

    def _check_tokens(self, one: Pass, start: int, size: int) -> None:
        """Raises where the caller gives other tokens than the trace was recorded of.

        Tokens that ``generate()`` has sampled itself may be others; so may padding, and what either side calls unknown.
        """
        recorded, rows = self._trace.token_ids, one.rows
        if recorded is None or rows is None or rows.token_ids is None or rows.num_rows != size or rows.decodes:
            return
        recorded_N, given_N = recorded[start : start + size], rows.token_ids.reshape(-1).cpu()
        other_N = (recorded_N != given_N) & (recorded_N >= 0) & self._real[start : start + size]
        if bool(other_N.any()):
            row = int(other_N.nonzero()[0])
            raise ValueError(
                f"The trace is of other tokens: its row {start + row} is token {int(recorded_N[row])}, and the model "
                f"runs token {int(given_N[row])} there ({int(other_N.sum())} of {size} differ). Replay the batches it "
                "was recorded of, in their order; a trace without token_ids is not checked for this."
            )

    def _again(self, number: int, mark: Tensor, count: int) -> Tensor:
        """The rows that a forward was given, now that it is recomputed: that of the same logits, the latest if any."""
        fitting = [each for each in reversed(self._done[number]) if len(each.recorded) == count]
        if not fitting:
            raise ValueError(f"{self._layers[number].name} is recomputed with {count} tokens, which it never ran with.")
        return next((each for each in fitting if torch.equal(each.mark, mark)), fitting[0]).recorded

    def _slots(self, number: int, recorded_TK: Tensor, live: Received) -> Tensor:
        """The recorded experts in as many slots as the layer has; the router's own for padding."""
        top_k = live.expert_index.shape[1]
        beyond = recorded_TK[:, top_k:]
        if recorded_TK.shape[1] < top_k or bool((beyond >= 0).any()):
            used = int((recorded_TK >= 0).sum(dim=1).max()) if len(recorded_TK) else 0
            raise ValueError(
                f"{self._layers[number].name} sends each token to {top_k} experts, and the trace to "
                f"{max(used, recorded_TK.shape[1]) if recorded_TK.shape[1] < top_k else used}."
            )
        recorded_TK = recorded_TK[:, :top_k]
        return torch.where(recorded_TK == _LIVE, live.expert_index, recorded_TK)

    def _finished(self, passes: list[Pass]) -> None:
        for one in passes:
            self._places.pop(one, None)
        calls = self._trace.calls
        if calls is not None and self.row > self._begun:
            number = int(calls[self._begun])
            if self.row < len(calls) and int(calls[self.row]) == number:
                left = int((calls[self.row :] == number).sum())
                raise ValueError(f"Call {number} of the trace has {left} rows more than the model has run tokens.")
        self._begun = self.row
        self.num_calls += 1

    def _failed(self) -> None:
        """A forward that raised gives its rows back."""
        self._places.clear()
        self.row = self._begun


_LIVE = EMPTY - 1


def _mark(logits_TE: Tensor) -> Tensor:
    """Two numbers by which the logits are known again, when they are recomputed."""
    flat = logits_TE.detach().double().flatten()
    return torch.stack([flat.sum(), flat @ torch.arange(1.0, len(flat) + 1, dtype=flat.dtype, device=flat.device)])
