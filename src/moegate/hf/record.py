"""``record``: the experts that every token of a model really goes to, while it runs."""

import importlib.metadata
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from moegate.hf.blocks import blocks_of
from moegate.hf.calls import Follower, Pass, forget_compiled, uncompiled
from moegate.hf.layers import MoELayer, moe_layers
from moegate.hf.received import Handles, watch, watch_logits
from moegate.hf.statistics import Counter, Statistics
from moegate.hf.trace_rows import RowMaker, column_types
from moegate.parts import check_integer
from moegate.trace.file import check_output, described, load
from moegate.trace.trace import Trace
from moegate.trace.writer import Columns, Kind

__all__ = ["Recording", "record"]

MODES = ("trace", "statistics")
MEMORY_LIMIT = 256 * 2**20


def record(
    model: nn.Module,
    mode: str = "trace",
    path: str | Path | None = None,
    *,
    weights: bool = True,
    logits: bool = False,
    dtype: torch.dtype = torch.float32,
    memory_limit: int = MEMORY_LIMIT,
) -> "Recording":
    """Records which experts the tokens of a model go to, within a ``with`` block.

    Args:
        model: a model of transformers, as it is or wrapped (DDP, FSDP, adapters, ``torch.compile``).
        mode: ``"trace"`` keeps every token, ``"statistics"`` counts only.
        path: a file that the trace is written to when the block ends; it is never held in memory as a whole.
        weights: keep the weights too, in a trace.
        logits: keep what the gates gave too, in a trace.
        dtype: what weights and logits are kept in.
        memory_limit: the bytes of a trace that are held in memory; more goes to a temporary file.

    Raises:
        ValueError: the model has no MoE layers, ``mode`` is unknown, or at ``path`` there is a file that is no trace.
        TypeError: ``model`` is no module, ``dtype`` is not floating point, ``path`` no path or ``memory_limit`` no
            integer.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
        >>> with record(model) as trace:
        ...     _ = model(torch.arange(8).view(2, 4))
        >>> trace.indices.shape, trace.load.sum(dim=1).tolist()
        (torch.Size([8, 2, 2]), [16, 16])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if mode not in MODES:
        raise ValueError(f"mode must be {' or '.join(map(repr, MODES))}, got {mode!r}.")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}.")
    if not isinstance(path, str | Path | None):
        raise TypeError(f"path must be the name of a file or None, got {path!r:.200}.")
    check_integer("memory_limit", memory_limit, least=0)
    layers = moe_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no MoE layers of a known family: there is nothing to record.")
    if any(getattr(layer.experts, "_is_expert_parallel", False) for layer in layers):
        raise ValueError("The experts are spread over devices, which receive numbers of their own: nothing to record.")
    if mode == "statistics" and (path is not None or logits):
        raise ValueError("mode='statistics' keeps counts only: it takes no path and no logits. Use mode='trace'.")
    output = None if path is None else check_output(path)
    types = column_types(_experts(layers), dtype if weights else None, dtype if logits else None)
    return Recording(model, layers, types if mode == "trace" else None, output, memory_limit)


class Recording:
    """What has been seen of a model: a context manager, to be read during the block and after it.

    Attributes:
        layers: the names of the ``L`` layers.
        num_experts: ``E`` of each.
        num_calls: forwards of the model that were seen to their end.
        num_failed: forwards that raised; nothing of them is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[MoELayer],
        types: dict[str, Kind] | None,
        output: Path | None,
        memory_limit: int,
    ):
        self.layers = tuple(layer.name for layer in layers)
        self.num_experts = _experts(layers)
        self.num_calls = 0
        self.num_failed = 0
        self._model = model
        self._layers = layers
        self._output = output
        self._started = False
        self._written = False
        self._handles = Handles()
        self._lock = threading.Lock()  # DataParallel runs a forward in every thread
        self._counter = Counter(self.layers, self.num_experts)
        self._rows = None if types is None else RowMaker(self.layers, self.num_experts, types)
        folder = None if output is None else output.parent
        self._columns = None if types is None else Columns(types, memory_limit, folder)

    def __enter__(self) -> "Recording":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begins to record; a ``RuntimeError`` when it has begun already."""
        if self._started:
            raise RuntimeError("This recording has been started already: call record(...) again for another one.")
        self._started = True
        forget_compiled()
        follower = Follower(self._model, self._layers, self._finished, self._failed)
        handles = [follower.handles]
        for number, layer in enumerate(self._layers):
            handles.append(watch(layer, uncompiled(partial(follower.saw, number))))
            if self._rows is not None and "logits" in self._rows.types and layer.row.gate is not None:
                handles.append(watch_logits(layer, uncompiled(partial(follower.saw_logits, number))))
        self._handles = Handles(*handles)

    def stop(self) -> None:
        """Ends the recording, and writes its file if it has one; a second time it does nothing."""
        self._handles.remove()
        if self._output is not None and not self._written:
            self._write(self._output)
            self._written = True

    @property
    def statistics(self) -> Statistics:
        """The load of every expert, by phase, so far."""
        return self._counter.statistics()

    @property
    def load(self) -> Tensor:
        """``[L, E]`` int64: assignments of each expert so far, without padding."""
        return self.statistics.load

    @property
    def trace(self) -> Trace:
        """The trace so far; a ``ValueError`` where only statistics are kept."""
        if self._columns is None or self._rows is None:
            raise ValueError("mode='statistics' keeps no trace: use record(model, mode='trace').")
        if self._written and self._output is not None:
            return load(self._output)
        tensors = {name: values for name, values in self._columns.tensors().items() if name not in self._unknown()}
        return Trace(
            layers=self.layers,
            num_experts=self.num_experts,
            domains=tuple(self._rows.domains),
            metadata=self._metadata(),
            **tensors,
        )

    @property
    def indices(self) -> Tensor:
        """``[T, L, K]``: the experts that every token went to, so far."""
        return self.trace.indices

    @property
    def weights(self) -> Tensor | None:
        """``[T, L, K]``: their weights; None where they are not kept."""
        return self.trace.weights

    @property
    def domain(self) -> str | Sequence[str] | None:
        """What the tokens to come are about: a name, or one for each sequence of the batch; None where unknown."""
        return None if self._rows is None else self._rows.domain

    @domain.setter
    def domain(self, value: str | Sequence[str] | None) -> None:
        if self._rows is None:
            raise ValueError("mode='statistics' keeps no domains: use record(model, mode='trace').")
        names = [value] if isinstance(value, str) else value
        if names is not None and not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
            raise TypeError(f"domain must be a name, a name for each sequence, or None, got {value!r:.200}.")
        self._rows.domain = value

    def reset(self) -> None:
        """Forgets what was counted, as at the beginning of a step; a trace's rows stay."""
        self._counter = Counter(self.layers, self.num_experts)

    def _finished(self, passes: list[Pass]) -> None:
        blocks = [block for one in passes for block in blocks_of(one, self.layers)]
        if not blocks:
            return
        with self._lock:
            # All rows are made before the first is kept, so that an error leaves no half of a call behind.
            chunks = [] if self._rows is None else [self._rows.chunk(block, self.num_calls) for block in blocks]
            for block in blocks:
                self._counter.add(block)
            for chunk in chunks:
                assert self._columns is not None
                self._columns.append(chunk)
            self.num_calls += 1
            self._counter.num_calls += 1

    def _failed(self) -> None:
        self.num_failed += 1

    def _unknown(self) -> set[str]:
        assert self._rows is not None
        return {"token_ids", "document_ids", "domain_ids"} - self._rows.known

    def _write(self, output: Path) -> None:
        assert self._columns is not None and self._rows is not None
        domains = tuple(self._rows.domains)
        metadata = described(self.layers, self.num_experts, domains, self._metadata())
        self._columns.write(output, metadata, self._unknown())

    def _metadata(self) -> dict[str, Any]:
        config = self._layers[0].config
        return {
            "model": getattr(config, "name_or_path", "") or type(self._model).__name__,
            "model_type": getattr(config, "model_type", ""),
            "rules": [_rule(layer) for layer in self._layers],
            "software": {name: importlib.metadata.version(name) for name in ("moegate", "torch", "transformers")},
            "source": "moegate.hf.record",
            "failed_calls": self.num_failed,
        }


def _rule(layer: MoELayer) -> dict[str, Any] | None:
    """The rule of a layer as JSON; None where no rule expresses it."""
    try:
        return layer.rule.to_dict()
    except ValueError:
        return None


def _experts(layers: list[MoELayer]) -> tuple[int, ...]:
    return tuple(layer.num_experts for layer in layers)
