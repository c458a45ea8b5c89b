"""What a task of the lab is: batches to train on, batches to evaluate, and a metric."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor


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
