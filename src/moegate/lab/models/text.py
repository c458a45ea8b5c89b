"""The language model of the lab: a byte-level decoder whose feed-forwards are routed."""

import torch
from torch import Tensor, nn

from moegate.lab.models.attention import CausalAttention, rotary_angles
from moegate.lab.models.feed_forward import FeedForwardBlock, FeedForwardFactory
from moegate.records import Routing

NUM_BYTES = 256
"""The vocabulary of a byte-level model."""


class DecoderLayer(nn.Module):
    """Pre-norm attention, then a pre-norm feed-forward, each with its residual.

    Example:
        >>> layer = DecoderLayer(8, 2, nn.Linear(8, 8))
        >>> out, routing = layer(torch.zeros(1, 5, 8), rotary_angles(5, 4))
        >>> out.shape, routing
        (torch.Size([1, 5, 8]), None)
    """

    def __init__(self, hidden_size: int, num_heads: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size)
        self.attention = CausalAttention(hidden_size, num_heads)
        self.block = FeedForwardBlock(hidden_size, feed_forward)

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        token_ids: Tensor | None = None,
        previous: Routing | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Return the hidden states `[B, S, D]` and the routing of the feed-forward."""
        hidden = hidden + self.attention(self.norm(hidden), *angles)
        out: tuple[Tensor, Routing | None] = self.block(hidden, token_ids, previous, generator)
        return out


class ByteLM(nn.Module):
    """A decoder over bytes: RoPE, RMSNorm, causal attention, no dropout, vocabulary of 256.

    Args:
        hidden_size: D.
        num_layers: decoder layers.
        num_heads: attention heads; must divide `hidden_size`.
        feed_forward: builds the feed-forward of each layer.
        max_length: the longest sequence it will see.

    Example:
        >>> model = ByteLM(16, 2, 2, lambda layer: nn.Linear(16, 16), max_length=8)
        >>> logits, routings = model(torch.zeros(1, 8, dtype=torch.int64))
        >>> logits.shape, routings
        (torch.Size([1, 8, 256]), [])
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        feed_forward: FeedForwardFactory,
        max_length: int = 256,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_BYTES, hidden_size)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_size, num_heads, feed_forward(layer)) for layer in range(num_layers)
        )
        self.norm = nn.RMSNorm(hidden_size)
        self.head = nn.Linear(hidden_size, NUM_BYTES, bias=False)
        cosine, sine = rotary_angles(max_length, hidden_size // num_heads)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(
        self, inputs: Tensor, token_ids: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """Return next-byte logits `[B, S, 256]` and one `Routing` for each routed layer.

        Raises:
            ValueError: a sequence longer than `max_length`.
        """
        length, max_length = inputs.shape[1], self.get_buffer("cosine").shape[0]
        if length > max_length:
            raise ValueError(f"A sequence of {length} bytes is longer than max_length={max_length}.")
        angles = (self.get_buffer("cosine")[:length], self.get_buffer("sine")[:length])
        hidden = self.embed(inputs)
        routings: list[Routing] = []
        for layer in self.layers:
            previous = routings[-1] if routings else None
            hidden, routing = layer(hidden, angles, token_ids, previous, generator)
            if routing is not None:
                routings.append(routing)
        return self.head(self.norm(hidden)), routings
