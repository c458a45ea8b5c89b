"""Routed experts to put into files, and pickles that would run code."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def malicious(tmp_path: Path) -> Any:
    """An object whose unpickling leaves a trace, which must not be there at the end."""
    ran = tmp_path / "ran"
    yield Malicious(ran)
    assert not ran.exists()


@pytest.fixture
def indices_TLK() -> np.ndarray:
    """[7, 3, 2] of 9 experts, distinct in a token; the largest is there."""
    generator = np.random.default_rng(0)
    indices = np.stack([[generator.permutation(9)[:2] for _ in range(3)] for _ in range(7)]).astype(np.int16)
    indices[0, 0, 0], indices[0, 0, 1] = 8, 0
    return indices
