"""Training runs: configuration, loop, checkpoints, evaluation."""

from moegate.lab.training.config import TrainConfig, read_config_file
from moegate.lab.training.interruption import Interrupted
from moegate.lab.training.loop import RunOptions, train

__all__ = ["Interrupted", "RunOptions", "TrainConfig", "read_config_file", "train"]
