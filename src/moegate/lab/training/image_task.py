"""The image task: handwritten digits, moved a little in training; one image is one token."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moegate.lab.data import images
from moegate.lab.data.batches import ImageBatch, ImageBatches, image_evaluation_batches
from moegate.lab.data.seeding import generator_at
from moegate.lab.training.config import TrainConfig
from moegate.lab.training.task import Batch

IMAGE_SIDE = 28
DIGITS_SHOWN = 100
EVALUATION_BATCH = 200


class ImageTask:
    """5,000 handwritten digits, 4,000 to train on; the domains are the ten classes, the metric is accuracy."""

    metric = "accuracy"
    domains = tuple(str(digit) for digit in range(images.NUM_CLASSES))

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._data = images.load()
        self.fingerprint = self._data.fingerprint
        self._threshold = coarse(self._data.train.images).mean(dim=0)
        self._batches = ImageBatches(self._data.train, batch_size=config.batch_size, seed=config.seed)

    def batch(self, step: int) -> Batch:
        """Return the shuffled batch of a step, each image moved by a random whole number of pixels."""
        drawn = self._batches.batch(step)
        generator = generator_at("shift", self._config.seed, step)
        return self._make(drawn._replace(images=shifted(drawn.images, self._config.image_shift, generator)))

    def evaluation(self) -> Iterator[Batch]:
        """Yield the 1,000 test images, the classes mixed.

        In the order of the split each batch would hold one class, and capacity would drop what it never drops in a
        mixed batch.
        """
        order = torch.arange(len(self._data.test)).view(images.NUM_CLASSES, -1).T.reshape(-1)
        mixed = images.ImageSplit(self._data.test.images[order], self._data.test.labels[order])
        for batch in image_evaluation_batches(mixed, batch_size=EVALUATION_BATCH):
            yield self._make(batch)

    def score(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return 1 for a right answer and 0 for a wrong one."""
        return (logits.argmax(dim=-1) == targets).double()

    def view(self) -> list[tuple[Batch, dict[str, Any]]]:
        """Return the first evaluated digits, with their pixels as rows of grey values from 0 to 255."""
        batch = next(self.evaluation())
        shown = Batch(*(tensor[:DIGITS_SHOWN] for tensor in batch))
        pixels = (shown.inputs * 255).round().to(torch.uint8).view(-1, IMAGE_SIDE, IMAGE_SIDE)
        fields = {
            "domain": "digits",
            "tokens": [str(label) for label in shown.targets.tolist()],
            "pixels": pixels.tolist(),
        }
        return [(shown, fields)]

    def _make(self, batch: ImageBatch) -> Batch:
        codes = image_codes(batch.images, self._threshold)
        return Batch(batch.images, batch.labels, codes, batch.labels)


def shifted(pixels: Tensor, furthest: int, generator: torch.Generator) -> Tensor:
    """Return images `[B, 784]`, each moved by up to `furthest` pixels up or down and left or right, zeros moved in.

    4,000 digits are few: without it every model here learns them by heart, and its size hardly matters.

    Example:
        >>> shifted(torch.ones(2, 784), 0, torch.Generator()).equal(torch.ones(2, 784))
        True
    """
    padded = F.pad(pixels.view(-1, IMAGE_SIDE, IMAGE_SIDE), (furthest,) * 4)
    moves_2B = torch.randint(0, 2 * furthest + 1, (2, len(padded)), generator=generator)
    row_BH, column_BW = moves_2B[:, :, None] + torch.arange(IMAGE_SIDE)
    image_B = torch.arange(len(padded))
    return padded[image_B[:, None, None], row_BH[:, :, None], column_BW[:, None, :]].flatten(1)


def coarse(pixels: Tensor) -> Tensor:
    """Return the mean brightness of the 4 × 4 cells of images `[B, 784]`, as `[B, 16]`.

    Example:
        >>> coarse(torch.ones(2, 784)).shape
        torch.Size([2, 16])
    """
    square = pixels.view(-1, 1, IMAGE_SIDE, IMAGE_SIDE)
    return F.avg_pool2d(square, IMAGE_SIDE // 4).flatten(1)


def image_codes(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Return a 16-bit code `[B]` of each image: one bit a cell of 7 × 7 pixels, set if brighter than `threshold`.

    Hash routing needs an id for each token. The number of an image would be meaningless, so an image is known by
    its coarse shape: equal shapes go to equal experts, and the label plays no part.

    Example:
        >>> image_codes(torch.zeros(2, 784), torch.full((16,), 0.5)).tolist()
        [0, 0]
    """
    bits = (coarse(pixels) > threshold).to(torch.int64)
    codes: Tensor = (bits << torch.arange(16)).sum(dim=-1)
    return codes
