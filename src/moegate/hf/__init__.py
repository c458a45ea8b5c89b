"""Hugging Face: the MoE models of transformers, read, captured, replayed, balanced and run on moegate's kernels."""

from moegate.hf.layers import MoELayer, moe_layers
from moegate.hf.record import Recording, record
from moegate.hf.replay import Replay, replay
from moegate.hf.statistics import Statistics

__all__ = ["MoELayer", "Recording", "Replay", "Statistics", "moe_layers", "record", "replay"]
