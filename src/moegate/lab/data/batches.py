"""Training batches as functions of the seed and the step, and evaluation batches that are the same for all.

A run that resumes at step n asks for batch n: there is no iterator whose state would have to be saved.
"""

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import NamedTuple

import torch
from torch import Tensor

from moegate.lab.data.images import ImageSplit
from moegate.lab.data.seeding import generator_at, require_positive, require_step
from moegate.lab.data.text import TextCorpus, TextDomain


class ImageBatch(NamedTuple):
    """B images with their classes."""

    images: Tensor
    """[B, 784] float32."""
    labels: Tensor
    """[B] int64."""


class TextBatch(NamedTuple):
    """B windows of S bytes, and the byte after each byte."""

    tokens: Tensor
    """[B, S] int64."""
    targets: Tensor
    """[B, S] int64; `targets[:, i]` follows `tokens[:, i]`."""
    domain: Tensor
    """[B] int64, position in `corpus.domains`."""


class ImageBatches:
    """Shuffled batches without end; every image comes exactly once in each epoch.

    Args:
        split: the images to draw from.
        batch_size: B; a batch may end one epoch and begin the next, so none is smaller.
        seed: decides the order of every epoch.

    Example:
        >>> import torch
        >>> from moegate.lab.data.images import ImageSplit
        >>> digits = ImageSplit(torch.rand(6, 784), torch.arange(6))
        >>> batches = ImageBatches(digits, batch_size=4, seed=0)
        >>> sorted(torch.cat([batches.batch(step).labels for step in range(3)]).tolist())
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """

    def __init__(self, split: ImageSplit, *, batch_size: int, seed: int) -> None:
        require_positive(batch_size=batch_size, images=len(split))
        self.split = split
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, step: int) -> ImageBatch:
        """The batch of this step, whatever was asked before."""
        start = require_step(step) * self.batch_size
        size = len(self.split)
        position_B = torch.arange(start, start + self.batch_size)
        first, last = start // size, (start + self.batch_size - 1) // size
        orders = torch.cat([self._order(epoch) for epoch in range(first, last + 1)])
        row_B = orders[position_B - first * size]
        return ImageBatch(self.split.images[row_B], self.split.labels[row_B])

    def _order(self, epoch: int) -> Tensor:
        generator = generator_at("images", self.seed, epoch)
        return torch.randperm(len(self.split), generator=generator)


class TextBatches:
    """Random windows of the training text, domains in fixed shares.

    Args:
        corpus: the domains.
        batch_size: B windows a batch.
        sequence_length: S bytes a window.
        seed: decides which windows.
        weights: domain -> relative share of the windows (missing names get 0); default: equal shares. Each
            batch has the exact share of every domain, rounded up or down at random.

    Raises:
        ValueError: a window does not fit in a domain's text; unknown domain in, or useless, `weights`.

    Example:
        >>> from moegate.lab.data.text import from_documents
        >>> corpus = from_documents({n: [n.encode() * 40 + b"%d" % i for i in range(20)] for n in "ab"})
        >>> batch = TextBatches(corpus, batch_size=4, sequence_length=16, seed=0).batch(5)
        >>> batch.tokens.shape, sorted(batch.domain.tolist())
        (torch.Size([4, 16]), [0, 0, 1, 1])
    """

    def __init__(
        self,
        corpus: TextCorpus,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        require_positive(batch_size=batch_size, sequence_length=sequence_length)
        self.corpus = corpus
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self.shares = _shares(corpus, weights)
        for domain, share in zip(corpus.domains, self.shares.tolist(), strict=True):
            if share > 0:
                _require_window(domain, "train", sequence_length)

    def batch(self, step: int) -> TextBatch:
        """The batch of this step, whatever was asked before."""
        generator = generator_at("text", self.seed, require_step(step))
        domain_B = self._draw_domains(generator)
        place_B = torch.rand(self.batch_size, generator=generator, dtype=torch.float64)
        windows = []
        for domain, place in zip(domain_B.tolist(), place_B.tolist(), strict=True):
            text = self.corpus.domains[domain].train
            start = int(place * (len(text) - self.sequence_length))
            windows.append(text[start : start + self.sequence_length + 1])
        return _batch(windows, domain_B)

    def _draw_domains(self, generator: torch.Generator) -> Tensor:
        """Systematic sampling: one random offset, then equal strides through the shares; rows shuffled.

        Against independent draws this removes the noise of the mixture from the loss. The shuffle matters
        where capacity drops tokens by position: no domain may always come last.
        """
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        stride_B = (torch.arange(self.batch_size, dtype=torch.float64) + offset) / self.batch_size
        domain_B = torch.searchsorted(self.shares.cumsum(0), stride_B, right=True)
        largest = int(self.shares.nonzero().max())  # rounding may leave the last cumulative share under 1
        shuffled_B = torch.randperm(self.batch_size, generator=generator)
        return domain_B.clamp(max=largest)[shuffled_B]


def image_evaluation_batches(split: ImageSplit, *, batch_size: int) -> Iterator[ImageBatch]:
    """All images once, in their order; the last batch may be smaller."""
    require_positive(batch_size=batch_size)
    for images, labels in zip(
        torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True
    ):
        yield ImageBatch(images, labels)


def text_evaluation_batches(
    corpus: TextCorpus, *, batch_size: int, sequence_length: int, windows_per_domain: int
) -> Iterator[TextBatch]:
    """Fixed windows of the validation text, the same for every run, one domain a batch.

    The windows of a domain are spread evenly over its validation text and no byte is predicted twice; a
    domain too short for `windows_per_domain` of them gives as many as fit. Its last batch may be smaller.

    Raises:
        ValueError: a domain's validation text is shorter than one window.
    """
    require_positive(batch_size=batch_size, sequence_length=sequence_length, windows_per_domain=windows_per_domain)
    for domain in corpus.domains:
        _require_window(domain, "validation", sequence_length)
    for number, domain in enumerate(corpus.domains):
        windows = _spread_windows(domain.validation, sequence_length, windows_per_domain)
        for first in range(0, len(windows), batch_size):
            chosen = windows[first : first + batch_size]
            yield _batch(chosen, torch.full((len(chosen),), number))


def _spread_windows(text: Tensor, sequence_length: int, wanted: int) -> list[Tensor]:
    """Windows of S + 1 bytes at equal distances of at least S, from the start of the text to its end."""
    room = len(text) - 1 - sequence_length
    count = min(wanted, (len(text) - 1) // sequence_length)
    starts = [room * n // max(count - 1, 1) for n in range(count)]
    return [text[start : start + sequence_length + 1] for start in starts]


def _batch(windows: list[Tensor], domain_B: Tensor) -> TextBatch:
    window_BS = torch.stack(windows).to(torch.int64)
    return TextBatch(window_BS[:, :-1].contiguous(), window_BS[:, 1:].contiguous(), domain_B)


def _require_window(domain: TextDomain, split: str, sequence_length: int) -> None:
    available = len(getattr(domain, split))
    if available <= sequence_length:
        raise ValueError(
            f"Domain {domain.name!r} has {available} bytes of {split} text; a window of sequence_length "
            f"{sequence_length} needs {sequence_length + 1}: add text to the domain or shorten the windows."
        )


def _shares(corpus: TextCorpus, weights: Mapping[str, float] | None) -> Tensor:
    """[number of domains] float64 shares that sum to 1."""
    weights = dict.fromkeys(corpus.names, 1.0) if weights is None else weights
    for name, weight in weights.items():
        if name not in corpus.names:
            near = get_close_matches(name, corpus.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the corpus has {', '.join(corpus.names)}."
            raise ValueError(f"weights names the unknown domain {name!r}: {hint}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights[{name!r}] is {weight}: a weight is a finite number, 0 or more.")
    shares = torch.tensor([weights.get(name, 0.0) for name in corpus.names], dtype=torch.float64)
    if shares.sum() <= 0:
        raise ValueError("weights are all 0: give at least one domain a positive weight.")
    return shares / shares.sum()
