"""The feed-forward part of a lab model, routed or not: the models don't know which."""

from typing import Protocol

import torch
from torch import Tensor, nn

from moegate.layer import MoE
from moegate.records import Routing


class FeedForwardFactory(Protocol):
    """Builds the feed-forward of one layer: a `moegate.MoE`, or any module that maps `[..., D]` to `[..., D]`."""

    def __call__(self, layer: int) -> nn.Module:
        """Return the feed-forward module of layer number `layer` (0 first)."""
        ...


class FeedForwardBlock(nn.Module):
    """A pre-norm residual feed-forward: `hidden + feed_forward(norm(hidden))`.

    Returns the routing too, `None` for a feed-forward that isn't routed.

    Example:
        >>> block = FeedForwardBlock(8, nn.Linear(8, 8))
        >>> out, routing = block(torch.zeros(3, 8))
        >>> out.shape, routing
        (torch.Size([3, 8]), None)
    """

    def __init__(self, hidden_size: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size)
        self.feed_forward = feed_forward

    def forward(
        self,
        hidden: Tensor,
        token_ids: Tensor | None = None,
        previous: Routing | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Return `(hidden + feed_forward(norm(hidden)), routing)`."""
        normed = self.norm(hidden)
        if not isinstance(self.feed_forward, MoE):
            return hidden + self.feed_forward(normed), None
        out, routing = self.feed_forward(normed, token_ids=token_ids, previous=previous, generator=generator)
        return hidden + out, routing
