"""Hugging Face: the MoE models of transformers, read, captured, replayed, balanced and run on moegate's kernels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moegate.hf.layers import MoELayer, moe_layers

if TYPE_CHECKING:
    from moegate.hf.training.callback import RoutingCallback

__all__ = ["MoELayer", "RoutingCallback", "moe_layers"]


def __getattr__(name: str) -> Any:
    """The callback loads transformers, so it is imported when it is first used."""
    if name == "RoutingCallback":
        return import_module("moegate.hf.training.callback").RoutingCallback
    raise AttributeError(f"module 'moegate.hf' has no attribute {name!r}")
