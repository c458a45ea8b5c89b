"""The formats of other systems, a row a format. Nothing in a file is believed, and no pickle is executed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moegate.trace.importers.arrays import read_npy, read_npz, recognises_npy, recognises_npz
from moegate.trace.importers.counts import read_counts, recognises_counts
from moegate.trace.importers.hints import Hints
from moegate.trace.importers.llama_cpp import (
    read_activations,
    read_tokens,
    recognises_activations,
    recognises_tokens,
)
from moegate.trace.importers.responses import read_responses, recognises_responses
from moegate.trace.importers.sglang_recorder import read_recorder, recognises_recorder
from moegate.trace.loads import Loads
from moegate.trace.trace import Trace

__all__ = ["FORMATS", "Format", "Hints"]


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: what ``--format`` calls it.
        written_by: the systems that write it, in words.
        gives: ``"trace"``, ``"loads"`` or either.
        recognises: whether a file, of which the first bytes are passed too, may be of this kind.
        read: the file as a trace or loads; a ``ValueError`` names what is wrong with it.
    """

    name: str
    written_by: str
    gives: str
    recognises: Callable[[Path, bytes], bool]
    read: Callable[[Path, Hints], Trace | Loads]


_ROWS = (
    Format("npy", "vLLM, TensorRT-LLM: routed_experts in a .npy file", "trace", recognises_npy, read_npy),
    Format("npz", "vLLM, TensorRT-LLM: routed_experts in a .npz file", "trace", recognises_npz, read_npz),
    Format(
        "responses",
        "vLLM, TensorRT-LLM, SGLang, NeMo-RL: routed_experts in .json or .jsonl",
        "trace",
        recognises_responses,
        read_responses,
    ),
    Format(
        "sglang-recorder",
        "SGLang: dumps of the expert distribution recorder, .pt",
        "trace or loads",
        recognises_recorder,
        read_recorder,
    ),
    Format("llama.cpp", "llama.cpp moe-trace: layer,expert in .csv", "loads", recognises_activations, read_activations),
    Format("llama.cpp-tokens", 'llama.cpp: layer,"expert expert ..." in .csv', "trace", recognises_tokens, read_tokens),
    Format("counts", "MindSpeed-RL, EPLB: counts in .json or .jsonl", "loads", recognises_counts, read_counts),
)

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
"""By name, in the order in which a file is tried."""
