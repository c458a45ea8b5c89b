"""Random streams that are addressed, not advanced: the same seed and step always give the same draws."""

import hashlib
from operator import index

import torch


def generator_at(purpose: str, seed: int, position: int) -> torch.Generator:
    """A fresh generator for one step, or one epoch, of a stream.

    The seed of the generator is a hash, because neighbouring seeds of the Mersenne Twister are correlated and
    `seed + step` would make run 1 at step 0 equal to run 0 at step 1.

    Example:
        >>> import torch
        >>> first = torch.rand(2, generator=generator_at("text", seed=0, position=7))
        >>> bool(torch.equal(first, torch.rand(2, generator=generator_at("text", seed=0, position=7))))
        True
    """
    digest = hashlib.blake2b(f"{purpose}:{index(seed)}:{index(position)}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def require_step(step: int) -> int:
    """`step` as an integer; raises ValueError when it is negative."""
    if index(step) < 0:
        raise ValueError(f"step is {step}: batches are numbered from 0.")
    return index(step)


def require_positive(**sizes: int) -> None:
    """Raise ValueError for the first of the named sizes that is below 1."""
    for name, size in sizes.items():
        if index(size) < 1:
            raise ValueError(f"{name} is {size}: it must be at least 1.")
