"""Where the numbers of a run go: its own log, and services on request."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from moegate.lab.logging.jsonl import JsonlLogger, keep_until, read_metrics
from moegate.lab.logging.protocol import Logger, scalars
from moegate.lab.logging.services import MlflowLogger, TensorBoardLogger, WandbLogger
from moegate.parts import did_you_mean

SERVICES: dict[str, Callable[[Path, str, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
"""Name of a service -> its logger. A new one is a class in a file and a line here."""


def check_services(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of logging services if all are known.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> check_services(["wandb"])
        ('wandb',)
        >>> check_services(["wandbb"])
        Traceback (most recent call last):
            ...
        ValueError: Unknown logger 'wandbb'. Did you mean 'wandb'?
    """
    for name in names:
        if name not in SERVICES:
            raise ValueError(f"Unknown logger '{name}'.{did_you_mean(name, SERVICES)}")
    return tuple(names)


__all__ = [
    "SERVICES",
    "JsonlLogger",
    "Logger",
    "MlflowLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "check_services",
    "keep_until",
    "read_metrics",
    "scalars",
]
