"""TensorBoard, Weights & Biases and MLflow: thin, loaded only when asked for."""

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegate.lab.logging.protocol import scalars


def load_service(module: str, extra: str) -> Any:
    """Import an optional module.

    Raises:
        ValueError: it isn't installed; the message says which extra brings it.

    Example:
        >>> load_service("json", "tensorboard").__name__
        'json'
        >>> load_service("no_such_module", "wandb")
        Traceback (most recent call last):
            ...
        ValueError: Logging to wandb needs a package that isn't installed: in the clone, pip install '.[wandb]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Logging to {extra} needs a package that isn't installed: in the clone, pip install '.[{extra}]'"
        ) from error


class TensorBoardLogger:
    """Writes the numbers of a run as TensorBoard events into `DIR/tensorboard`.

    Source: https://pytorch.org/docs/stable/tensorboard.html
    """

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        writer = load_service("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(directory / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {key} = {value}" for key, value in config.items()))

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Write each number of the record as a scalar."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, step)

    def finish(self, evaluation: Mapping[str, Any]) -> None:
        """Write the evaluation and close."""
        for name, value in scalars(evaluation).items():
            self._writer.add_scalar(f"evaluation/{name}", value)
        self.close()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbLogger:
    """Sends the numbers of a run to Weights & Biases; a run that is resumed in its folder goes on there.

    Source: https://docs.wandb.ai/ref/python/
    """

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        wandb = load_service("wandb", "wandb")
        place = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project="moegate", name=name, config=dict(config), dir=str(directory), id=place, resume="allow"
        )

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Send the numbers of the record."""
        self._run.log(scalars(record), step=step)

    def finish(self, evaluation: Mapping[str, Any]) -> None:
        """Put the evaluation into the run's summary and close."""
        for name, value in scalars(evaluation).items():
            self._run.summary[f"evaluation/{name}"] = value
        self.close()

    def close(self) -> None:
        """Finish the run at the service."""
        self._run.finish()


class MlflowLogger:
    """Sends the numbers of a run to MLflow's current tracking store; a resumed run is a new one there.

    Source: https://mlflow.org/docs/latest/python_api/
    """

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        self._mlflow = load_service("mlflow", "mlflow")
        self._mlflow.set_experiment("moegate")
        self._mlflow.start_run(run_name=name)
        self._mlflow.log_params(dict(config))
        self._mlflow.set_tag("directory", str(directory))

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Send the numbers of the record."""
        self._mlflow.log_metrics(scalars(record), step=step)

    def finish(self, evaluation: Mapping[str, Any]) -> None:
        """Send the evaluation and close."""
        numbers = scalars(evaluation)
        self._mlflow.log_metrics({f"evaluation/{name}": value for name, value in numbers.items()})
        self.close()

    def close(self) -> None:
        """End the run at the service."""
        self._mlflow.end_run()
