"""The tasks of the lab by name."""

from moegate.lab.training.config import TrainConfig
from moegate.lab.training.image_task import ImageTask
from moegate.lab.training.task import Task
from moegate.lab.training.text_task import TextTask


def make_task(config: TrainConfig) -> Task:
    """Return the task of a configuration, with its data loaded.

    Example:
        >>> make_task(TrainConfig.create(task="image")).metric
        'accuracy'
    """
    return ImageTask(config) if config.task == "image" else TextTask(config)
