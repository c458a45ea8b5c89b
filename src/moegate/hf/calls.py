"""The forwards of a model, followed by hooks: which experts each layer chose, in which part of which call.

A *call* is one outermost forward of the model. A *pass* is one forward of a part of it that is a model by itself: the
decoder, the encoder, the vision tower, the wrapper that adds the head. What a layer's experts receive belongs to the
innermost pass that is running.
"""

import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.layers import MoELayer
from moegate.hf.received import Handles, Received, watch, watch_logits

__all__ = ["Pass", "follow", "recomputing"]


def recomputing() -> bool:
    """Whether a forward is being run again inside of a backward: activation checkpointing, of either kind."""
    return bool(torch._C._current_graph_task_id() != -1)


@dataclass(eq=False)
class Pass:
    """One forward of a module that is a model by itself.

    Attributes:
        module: the module; None for a layer that was called by itself, outside of any forward.
        args: its positional arguments.
        kwargs: its named arguments.
        past: the positions that its cache held before; None without a cache.
        outer: the pass that it is a part of; None for the outermost.
        received: what the experts of each layer received, by the layer's number, in order.
        logits: what the gates gave, likewise; empty unless asked for.
    """

    module: nn.Module | None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    past: int | None = None
    outer: "Pass | None" = None
    received: dict[int, list[Received]] = field(default_factory=dict)
    logits: dict[int, list[Tensor]] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """The arguments by name."""
        if not self.args or self.module is None:
            return self.kwargs
        return dict(zip(inspect.signature(self.module.forward).parameters, self.args, strict=False)) | dict(self.kwargs)


class _Running(threading.local):
    """The passes that are running in this thread, the outermost first, and those of the call that have ended."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.done: list[Pass] = []


class _Follower:
    def __init__(self, finished: Callable[[list[Pass]], None], failed: Callable[[], None]):
        self.running = _Running()
        self.finished = finished
        self.failed = failed

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if recomputing():
            return
        running = self.running.passes
        if any(one.module is module for one in running):  # an interrupted forward has left its passes behind
            running.clear()
            self.failed()
        if not running:
            self.running.done = []
        one = Pass(module, args, kwargs, outer=running[-1] if running else None)
        cache = one.inputs.get("past_key_values") if args else kwargs.get("past_key_values")
        if cache is not None and hasattr(cache, "get_seq_length"):
            one.past = int(cache.get_seq_length())
        running.append(one)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running = self.running.passes
        if recomputing() or not any(one.module is module for one in running):
            return
        while running[-1].module is not module:
            running.pop()
        self.running.done.append(running.pop())
        if running:
            return
        done, self.running.done = self.running.done, []
        # A forward that raised has no output; some of its layers have seen the tokens, and others have not.
        if output is None:
            self.failed()
        else:
            self.finished(done)

    def see(self, layer: int, received: Received) -> None:
        if recomputing():
            return
        if self.running.passes:
            self.running.passes[-1].received.setdefault(layer, []).append(received)
        else:
            self.finished([Pass(None, received={layer: [received]})])

    def see_logits(self, layer: int, logits: Tensor) -> None:
        if not recomputing() and self.running.passes:
            self.running.passes[-1].logits.setdefault(layer, []).append(logits)


def follow(
    model: nn.Module,
    layers: list[MoELayer],
    finished: Callable[[list[Pass]], None],
    failed: Callable[[], None],
    logits: bool = False,
) -> Handles:
    """Calls ``finished`` with the passes of each call, in the order in which they ended, as soon as the call is over.

    Args:
        model: the model.
        layers: its layers; their numbers are their places in this list.
        finished: what to do with a call.
        failed: what to do when a forward raises; nothing that it has seen is passed on.
        logits: also take what the gates give.
    """
    follower = _Follower(finished, failed)
    handles: list[RemovableHandle | Handles] = []
    for module in _models(model, layers):
        handles.append(module.register_forward_pre_hook(_uncompiled(follower.enter), with_kwargs=True))
        handles.append(module.register_forward_hook(_uncompiled(follower.leave), always_call=True))
    for number, layer in enumerate(layers):
        handles.append(watch(layer, _of_layer(_uncompiled(follower.see), number)))
        if logits and layer.row.gate is not None:
            handles.append(watch_logits(layer, _of_layer(_uncompiled(follower.see_logits), number)))
    return Handles(*handles)


def _of_layer(see: Callable[[int, Any], None], number: int) -> Callable[[Any], None]:
    return lambda value: see(number, value)


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, kept out of compiled code: it runs between two compiled parts."""
    kept_out = torch.compiler.disable(hook)

    def run(*args: Any) -> None:
        if torch.compiler.is_compiling():
            kept_out(*args)
        else:
            hook(*args)

    return run


def _models(model: nn.Module, layers: list[MoELayer]) -> list[nn.Module]:
    """The modules around the layers that are models by themselves: those of transformers, and what wraps them."""
    from transformers import PreTrainedModel

    blocks = {layer.block for layer in layers}
    paths = {outer for path, module in model.named_modules() if module in blocks for outer in _prefixes(path)}
    around = {path: module for path, module in model.named_modules() if path in paths}
    models = {path for path, module in around.items() if isinstance(module, PreTrainedModel)}
    wrappers = {path for path in around if any(_within(inner, path) for inner in models)} if models else {""}
    return [module for path, module in around.items() if path in models | wrappers]


def _within(inner: str, outer: str) -> bool:
    return not outer or inner.startswith(f"{outer}.")


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]
