"""Hugging Face: the MoE models of transformers, read, captured, replayed, balanced and run on moegate's kernels."""

from moegate.hf.layers import MoELayer, moe_layers

__all__ = ["MoELayer", "moe_layers"]
