"""Small models with routed feed-forwards: an image classifier and a byte-level language model."""

from moegate.lab.models.attention import CausalAttention, rotary_angles, rotate
from moegate.lab.models.feed_forward import FeedForwardBlock, FeedForwardFactory
from moegate.lab.models.image import ImageClassifier
from moegate.lab.models.text import NUM_BYTES, ByteLM, DecoderLayer

__all__ = [
    "NUM_BYTES",
    "ByteLM",
    "CausalAttention",
    "DecoderLayer",
    "FeedForwardBlock",
    "FeedForwardFactory",
    "ImageClassifier",
    "rotary_angles",
    "rotate",
]
