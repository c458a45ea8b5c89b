"""Hugging Face: the MoE models of transformers, read, captured, replayed, balanced and run on moegate's kernels.

Importing it registers the experts implementation "moegate": ``model.set_experts_implementation("moegate")``.
"""

import moegate.hf.experts_interface  # registers the implementation  # noqa: F401
from moegate.hf.layers import MoELayer, moe_layers
from moegate.hf.swap import Swapped, SwappedLayer, swap, unswap
from moegate.hf.upcycle import upcycle

__all__ = ["MoELayer", "Swapped", "SwappedLayer", "moe_layers", "swap", "unswap", "upcycle"]
