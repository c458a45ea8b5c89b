"""Hugging Face: the MoE models of transformers, read, captured, replayed, balanced and run on moegate's kernels.

Importing it registers the experts implementation "moegate": ``model.set_experts_implementation("moegate")``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import moegate.hf.experts_interface  # registers the implementation  # noqa: F401
from moegate.hf.layers import MoELayer, moe_layers
from moegate.hf.loading import ByteTokenizer, TextBatch, load_model, load_tokenizer, texts_to_batches
from moegate.hf.record import Recording, record
from moegate.hf.replay import Replay, replay
from moegate.hf.saliency import Saliency, saliency, save_saliency
from moegate.hf.statistics import Statistics
from moegate.hf.swap import Swapped, SwappedLayer, swap, unswap
from moegate.hf.token_texts import token_texts
from moegate.hf.top_k import at_top_k
from moegate.hf.top_k_sweep import TopKResult, sweep_top_k
from moegate.hf.upcycle import upcycle

if TYPE_CHECKING:
    from moegate.hf.training.callback import RoutingCallback

__all__ = [
    "ByteTokenizer",
    "MoELayer",
    "Recording",
    "Replay",
    "RoutingCallback",
    "Saliency",
    "Statistics",
    "Swapped",
    "SwappedLayer",
    "TextBatch",
    "TopKResult",
    "at_top_k",
    "load_model",
    "load_tokenizer",
    "moe_layers",
    "record",
    "replay",
    "saliency",
    "save_saliency",
    "swap",
    "sweep_top_k",
    "texts_to_batches",
    "token_texts",
    "unswap",
    "upcycle",
]


def __getattr__(name: str) -> Any:
    """The callback loads the trainer of transformers, so it is imported when it is first used."""
    if name == "RoutingCallback":
        return import_module("moegate.hf.training.callback").RoutingCallback
    raise AttributeError(f"module 'moegate.hf' has no attribute {name!r}")
