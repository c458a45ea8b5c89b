"""Tiny runs for the tests of the lab: few steps, and a corpus of two domains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegate.lab.training import TrainConfig

TINY_IMAGE = {"steps": 11, "num_layers": 2, "batch_size": 16, "log_every": 3, "checkpoint_every": 4}
TINY_TEXT = {
    "steps": 11,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 8,
    "batch_size": 4,
    "sequence_length": 16,
    "log_every": 3,
    "checkpoint_every": 4,
    "evaluation_windows": 2,
}
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains: counting in words, and punctuation with characters of two and three bytes."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, line in (("words", "one two three four {}\n"), ("signs", "¿{}? – € ¡!\n")):
        (folder / name).mkdir()
        for number in range(20):
            text = "".join(line.format(number * count) for count in range(40))
            (folder / name / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(corpus: Path) -> MakeConfig:
    """Make the configuration of a run that takes a fraction of a second."""

    def make(task: str = "image", **settings: Any) -> TrainConfig:
        base = TINY_IMAGE if task == "image" else {**TINY_TEXT, "corpus": str(corpus)}
        return TrainConfig.create(task=task, **{**base, **settings})

    return make
