"""The forwards of a model, followed by hooks: which call is running, and which part of the model runs in it.

A *call* is one outermost forward of the model. A *pass* is one forward of a part of it that is a model by itself: the
decoder, the encoder, the vision tower, the wrapper that adds the head. What a layer's experts receive belongs to the
innermost pass that is running.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.layers import MoELayer
from moegate.hf.received import Handles, Received
from moegate.hf.token_rows import TokenRows, token_rows

__all__ = ["Follower", "Pass", "forget_compiled", "recomputing", "uncompiled"]


def recomputing() -> bool:
    """Whether a forward is being run again inside of a backward: activation checkpointing, of either kind."""
    return bool(torch._C._current_graph_task_id() != -1)


def forget_compiled() -> None:
    """Has ``torch.compile`` compile anew what it has compiled: code that is compiled does not see later hooks."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None and dynamo.counters["frames"]["ok"]:
        torch.compiler.reset()


def uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, kept out of compiled code: it runs between two compiled parts."""
    kept_out = torch.compiler.disable(hook)

    def run(*args: Any) -> Any:
        return kept_out(*args) if torch.compiler.is_compiling() else hook(*args)

    return run


@dataclass(eq=False)
class Pass:
    """One forward of a module that is a model by itself.

    Attributes:
        module: the module; None for a layer that was called by itself, outside of any forward.
        args: its positional arguments.
        kwargs: its named arguments.
        past: the positions that its cache held before; None without a cache.
        prepares: whether it is an encoder that runs by itself, before a decoder: the prefill of ``generate()``.
        outer: the pass that it is a part of; None for the outermost.
        received: the layers whose experts were called, by number, and what these received, in order.
        logits: what the gates gave, by the layer's number, in order; empty unless asked for.
    """

    module: nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    past: int | None = None
    prepares: bool = False
    outer: "Pass | None" = None
    received: list[tuple[int, Received]] = field(default_factory=list)
    logits: dict[int, list[Tensor]] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """The arguments by name."""
        if not self.args or self.module is None:
            return self.kwargs
        forward = self.module.forward
        names = _parameter_names(getattr(forward, "__func__", forward))[inspect.ismethod(forward) :]
        return dict(zip(names, self.args, strict=False)) | dict(self.kwargs)

    @cached_property
    def rows(self) -> TokenRows | None:
        """The tokens that it sees; None where its inputs don't say."""
        return token_rows(self)


@lru_cache(maxsize=256)
def _parameter_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Of a function, ``self`` included; remembered, because it is asked for in every forward."""
    return tuple(inspect.signature(function).parameters)


class _Running(threading.local):
    """The passes that are running in this thread, the outermost first, and those of the call that saw tokens."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.seen: list[Pass] = []


class Follower:
    """Follows the forwards of a model.

    Args:
        model: the model.
        layers: its layers; their numbers are their places in this list.
        finished: called with the passes of each call as soon as it is over, in the order in which they first received
            something.
        failed: called when a forward raises; nothing that it has seen is passed on.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[MoELayer],
        finished: Callable[[list[Pass]], None],
        failed: Callable[[], None],
    ):
        self._running = _Running()
        self._finished = finished
        self._failed = failed
        models = _models(model, layers)
        self._encoders = {module for path, module in models.items() if path.rpartition(".")[2] == "encoder"}
        handles: list[RemovableHandle] = []
        for module in models.values():
            handles.append(module.register_forward_pre_hook(uncompiled(self._enter), with_kwargs=True))
            handles.append(module.register_forward_hook(uncompiled(self._leave), always_call=True))
        self.handles = Handles(*handles)

    def saw(self, layer: int, received: Received) -> None:
        """Takes down what a layer's experts receive, unless it is recomputed."""
        if recomputing():
            return
        one = self.current()
        if one is None:
            self._finished([Pass(received=[(layer, received)])])
        else:
            self.add(one, layer, received)

    def saw_logits(self, layer: int, logits: Tensor) -> None:
        """Takes down what a layer's gate gives, unless it is recomputed."""
        if not recomputing() and (one := self.current()) is not None:
            one.logits.setdefault(layer, []).append(logits)

    def current(self) -> Pass | None:
        """The innermost pass that is running; None outside of any."""
        running = self._running.passes
        return running[-1] if running else None

    def add(self, one: Pass, layer: int, received: Received) -> None:
        """Takes down what a layer's experts receive in a pass that is running."""
        if not one.received:
            self._running.seen.append(one)
        one.received.append((layer, received))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if recomputing():
            return
        running = self._running.passes
        if any(one.module is module for one in running):  # an interrupted forward has left its passes behind
            running.clear()
            self._failed()
        if not running:
            self._running.seen = []
        one = Pass(module, args, kwargs, outer=running[-1] if running else None)
        one.prepares = one.outer is None and module in self._encoders
        cache = one.inputs.get("past_key_values") if args else kwargs.get("past_key_values")
        if cache is not None and hasattr(cache, "get_seq_length"):
            one.past = int(cache.get_seq_length())
        running.append(one)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if recomputing():
            return
        running = self._running.passes
        if not any(one.module is module for one in running):
            return
        while running.pop().module is not module:
            pass
        if running:
            return
        seen, self._running.seen = self._running.seen, []
        # A forward that raised has no output; some of its layers have seen the tokens, and others have not.
        if output is None:
            self._failed()
        elif seen:
            self._finished(seen)


def _models(model: nn.Module, layers: list[MoELayer]) -> dict[str, nn.Module]:
    """The modules around the layers that are models by themselves: those of transformers, and what wraps them."""
    from transformers import PreTrainedModel

    blocks = {layer.block for layer in layers}
    paths = {outer for path, module in model.named_modules() if module in blocks for outer in _prefixes(path)}
    around = {path: module for path, module in model.named_modules() if path in paths}
    models = {path for path, module in around.items() if isinstance(module, PreTrainedModel)}
    wrappers = {path for path in around if any(_within(inner, path) for inner in models)} if models else {""}
    return {path: module for path, module in around.items() if path in models | wrappers}


def _within(inner: str, outer: str) -> bool:
    return not outer or inner.startswith(f"{outer}.")


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]
