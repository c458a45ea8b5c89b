"""The two tasks of the lab: what a batch is, what is evaluated, and how the result is expressed."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moegate.lab.data import images, text
from moegate.lab.data.batches import (
    ImageBatch,
    ImageBatches,
    TextBatch,
    TextBatches,
    image_evaluation_batches,
    text_evaluation_batches,
)
from moegate.lab.data.seeding import generator_at
from moegate.lab.training.config import TrainConfig

IMAGE_SIDE = 28
DIGITS_SHOWN = 100
WINDOWS_SHOWN = 2
EVALUATION_BATCH = {"image": 200, "text": 8}


class Batch(NamedTuple):
    """What a model is fed, and what it should answer.

    `inputs` `[B, pixels]` or `[B, S]`, `targets` `[B]` or `[B, S]`, `token_ids` as targets: what hash routing hashes,
    `domain` `[B]`: the domain of each image or window.
    """

    inputs: Tensor
    targets: Tensor
    token_ids: Tensor
    domain: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that are routed: images, or bytes."""
        return self.targets.numel()

    def split(self, parts: int) -> list["Batch"]:
        """Return the batch in equal micro-batches."""
        return [Batch(*fields) for fields in zip(*(tensor.chunk(parts) for tensor in self), strict=True)]


class Task(Protocol):
    """A data set with its metric; the fingerprint tells whether two runs saw the same data."""

    metric: str
    domains: tuple[str, ...]
    fingerprint: str

    def batch(self, step: int) -> Batch:
        """Return the training batch of a step, whatever was asked before."""
        ...

    def evaluation(self) -> Iterator[Batch]:
        """Yield the evaluation batches, the same for every run."""
        ...

    def score(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the metric of each target, in the shape of `targets`."""
        ...

    def view(self) -> list[tuple[Batch, dict[str, Any]]]:
        """Return what the token view shows: a batch of one domain, and the JSON fields beside its routing."""
        ...


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
        for batch in image_evaluation_batches(mixed, batch_size=EVALUATION_BATCH["image"]):
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


class TextTask:
    """Bytes of several domains; the metric is bits per byte, the same number of bytes from each domain."""

    metric = "bits_per_byte"

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._corpus = text.load(config.corpus)
        self.domains = self._corpus.names
        self.fingerprint = self._corpus.fingerprint
        self._batches = TextBatches(
            self._corpus,
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            seed=config.seed,
        )

    def batch(self, step: int) -> Batch:
        """Return random windows of the training text, the domains in equal shares."""
        return _text_batch(self._batches.batch(step))

    def evaluation(self) -> Iterator[Batch]:
        """Yield fixed windows of the validation text of each domain, the domains mixed as in training.

        A batch of one domain would crowd the experts of that domain, and capacity would drop what it never drops
        in a mixed batch.
        """
        windows = in_turns(self._windows(self._config.evaluation_windows))
        for first in range(0, len(windows), EVALUATION_BATCH["text"]):
            chosen = windows[first : first + EVALUATION_BATCH["text"]]
            yield Batch(*(torch.cat(tensors) for tensors in zip(*chosen, strict=True)))

    def score(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the bits that each byte costs."""
        nats = F.cross_entropy(logits.flatten(0, -2).double(), targets.flatten(), reduction="none")
        return nats.view_as(targets) / math.log(2)

    def view(self) -> list[tuple[Batch, dict[str, Any]]]:
        """Return two windows of each domain, a byte a token."""
        return [
            (window, {"domain": self.domains[int(window.domain)], "tokens": byte_tokens(window.inputs[0])})
            for window in self._windows(WINDOWS_SHOWN)
        ]

    def _windows(self, per_domain: int) -> list[Batch]:
        batches = text_evaluation_batches(
            self._corpus,
            batch_size=1,
            sequence_length=self._config.sequence_length,
            windows_per_domain=per_domain,
        )
        return [_text_batch(batch) for batch in batches]


def in_turns(windows: Sequence[Batch]) -> list[Batch]:
    """Return windows of one domain each so that the domains take turns.

    Example:
        >>> def window(domain):
        ...     return Batch(*[torch.zeros(1, 2)] * 3, torch.tensor([domain]))
        >>> [int(window.domain) for window in in_turns([window(0), window(0), window(1), window(1)])]
        [0, 1, 0, 1]
    """
    seen: Counter[int] = Counter()
    turns = []
    for window in windows:
        domain = int(window.domain)
        turns.append((seen[domain], domain))
        seen[domain] += 1
    return [windows[place] for place in sorted(range(len(windows)), key=turns.__getitem__)]


def _text_batch(batch: TextBatch) -> Batch:
    return Batch(batch.tokens, batch.targets, batch.tokens, batch.domain)


def byte_tokens(byte_S: Tensor) -> list[str]:
    """Return the text that each byte shows: the first byte of a character shows all of it, the others nothing.

    What isn't UTF-8, such as a character cut at the edge of a window, shows as the replacement character.

    Example:
        >>> byte_tokens(torch.tensor(list("né".encode())))
        ['n', 'é', '']
    """
    raw = bytes(byte_S.tolist())
    shown: list[str] = []
    while len(shown) < len(raw):
        rest = raw[len(shown) :]
        size = next((size for size in (1, 2, 3, 4) if _is_character(rest[:size])), None)
        shown += ["\ufffd"] if size is None else [rest[:size].decode(), *[""] * (size - 1)]
    return shown


def _is_character(piece: bytes) -> bool:
    try:
        return len(piece.decode()) == 1
    except UnicodeDecodeError:
        return False


def make_task(config: TrainConfig) -> Task:
    """Return the task of a configuration, with its data loaded.

    Example:
        >>> make_task(TrainConfig.create(task="image")).metric
        'accuracy'
    """
    return ImageTask(config) if config.task == "image" else TextTask(config)
