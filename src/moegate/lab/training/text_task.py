"""The text task: bytes of several domains; one byte is one token."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moegate.lab.data import text
from moegate.lab.data.batches import TextBatch, TextBatches, text_evaluation_batches
from moegate.lab.training.config import TrainConfig
from moegate.lab.training.task import Batch

WINDOWS_SHOWN = 2
EVALUATION_BATCH = 8


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
        for first in range(0, len(windows), EVALUATION_BATCH):
            chosen = windows[first : first + EVALUATION_BATCH]
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
