"""The image classifier of the lab: one token a digit, residual feed-forwards, a linear head."""

import torch
from torch import Tensor, nn

from moegate.lab.models.feed_forward import FeedForwardBlock, FeedForwardFactory
from moegate.records import Routing


class ImageClassifier(nn.Module):
    """Pixels → hidden state → residual pre-norm feed-forwards → class logits.

    A whole image is one token, so the experts specialise in kinds of images and a K sweep trains in seconds.

    Args:
        hidden_size: D.
        num_layers: how many feed-forward blocks.
        feed_forward: builds the feed-forward of each layer.
        num_pixels: pixels of one flattened image.
        num_classes: size of the output.

    Example:
        >>> model = ImageClassifier(16, 2, lambda layer: nn.Linear(16, 16))
        >>> logits, routings = model(torch.zeros(3, 784))
        >>> logits.shape, routings
        (torch.Size([3, 10]), [])
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        feed_forward: FeedForwardFactory,
        num_pixels: int = 784,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(num_pixels, hidden_size)
        self.blocks = nn.ModuleList(FeedForwardBlock(hidden_size, feed_forward(layer)) for layer in range(num_layers))
        self.norm = nn.RMSNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(
        self, inputs: Tensor, token_ids: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """Return class logits `[B, classes]` and one `Routing` for each routed layer; inputs are `[B, pixels]`."""
        hidden = self.embed(inputs)
        routings: list[Routing] = []
        for block in self.blocks:
            previous = routings[-1] if routings else None
            hidden, routing = block(hidden, token_ids, previous, generator)
            if routing is not None:
                routings.append(routing)
        return self.head(self.norm(hidden)), routings
